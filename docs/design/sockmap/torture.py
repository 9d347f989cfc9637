#!/usr/bin/env python3
"""Is the kernel's sockmap fit to carry a connection between two sockets of the agent?

A client, a proxy and a server on loopback. The proxy accepts, dials, puts both sockets into a SOCKHASH whose verdict
program sends what arrives at the one out of the other, and from then on only waits for ends: it forwards half-closes and
resets, and by hand what it is given to read after all. As root: torture.py [CONNECTIONS] [AT_ONCE] [sockmap|copy]
What was seen is in ../sockmap.md.
"""
import collections, ctypes, hashlib, os, random, select, socket, struct, sys, threading

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
AT_ONCE = int(sys.argv[2]) if len(sys.argv) > 2 else 16
WAY = sys.argv[3] if len(sys.argv) > 3 else "sockmap"
PATIENCE = 10

libc = ctypes.CDLL(None, use_errno=True)
MAP_CREATE, MAP_UPDATE, PROG_LOAD, PROG_ATTACH = 0, 2, 5, 8
SOCKHASH, SK_SKB, SK_SKB_VERDICT = 18, 14, 38
seen, lock = collections.Counter(), threading.Lock()


def count(what, by=1):
    with lock:
        seen[what] += by


def bpf(command, attr):
    got = libc.syscall(321, command, ctypes.create_string_buffer(attr, len(attr)), len(attr))
    if got < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return got


def load():
    """A map, and on it: whatever arrives at a socket of it goes out of the socket that is under its ports."""
    def op(code, dst=0, src=0, off=0, imm=0):
        return struct.pack("<BBhi", code, dst | src << 4, off, imm)

    table = bpf(MAP_CREATE, struct.pack("<IIIII", SOCKHASH, 8, 4, 65536, 0))
    code = b"".join([
        op(0xBF, 6, 1), op(0x61, 2, 1, 136), op(0x63, 10, 2, -8),    # local_port
        op(0x61, 2, 6, 132), op(0x63, 10, 2, -4),                     # remote_port, as it is on the wire
        op(0xBF, 1, 6), op(0x18, 2, 1, 0, table), op(0), op(0xBF, 3, 10), op(0x07, 3, 0, 0, -8), op(0xB7, 4),
        op(0x85, 0, 0, 0, 72),                                        # bpf_sk_redirect_hash
        op(0x55, 0, 0, 1, 0), op(0xB7, 0, 0, 0, 1), op(0x95),         # who has no other passes
    ])
    text, gpl = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    attr = struct.pack("<IIQQ", SK_SKB, len(code) // 8, ctypes.addressof(text), ctypes.addressof(gpl))
    bpf(PROG_ATTACH, struct.pack("<IIII", table, bpf(PROG_LOAD, attr + bytes(96)), SK_SKB_VERDICT, 0))
    return table


def lead(table, of, to):
    ports = struct.pack("<I", of.getsockname()[1]) + struct.pack(">I", of.getpeername()[1])
    key, value = ctypes.create_string_buffer(ports, 8), ctypes.create_string_buffer(struct.pack("<I", to.fileno()), 4)
    bpf(MAP_UPDATE, struct.pack("<IIQQQ", table, 0, ctypes.addressof(key), ctypes.addressof(value), 0))


def listen():
    s = socket.create_server(("127.0.0.1", 0), backlog=1024)
    return s, s.getsockname()


def reset(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def proxy(app, server):
    other = socket.create_connection(server)
    ends = {app: other, other: app}
    try:
        if WAY == "sockmap":
            # The server's side first: an answer must not come before its way is there.
            try:
                lead(table, other, app)
                lead(table, app, other)
            except OSError as error:
                # Already half closed. It is copied, as it would be without.
                count(f"proxy: not joined: {os.strerror(error.errno)}")
        open_ends = set(ends)
        while open_ends:
            ready, _, _ = select.select(list(open_ends), [], [], 60)
            if not ready:
                count("proxy: nothing for a minute")
                return
            for s in ready:
                try:
                    data = s.recv(65536, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    count("proxy: readable, with nothing to read")
                    continue
                if data:
                    count("proxy: bytes that it was given to read", len(data))
                    ends[s].sendall(data)
                else:
                    open_ends.discard(s)
                    ends[s].shutdown(socket.SHUT_WR)
    except OSError as error:
        reset(app), reset(other)
        return count(f"proxy: {type(error).__name__} {error.errno}")
    app.close(), other.close()


def serve(c):
    """Reads to the end, answers with what it read and as many bytes as it was asked for. A reset is an end, too."""
    c.settimeout(PATIENCE)
    try:
        head = c.recv(8, socket.MSG_WAITALL)
        if len(head) < 8:
            return count("server: ended before its head")
        kind, wanted = struct.unpack("<II", head)
        if kind == 2:
            while data := c.recv(65536):
                c.sendall(data)
            return
        length, digest = 0, hashlib.sha256()
        while data := c.recv(random.choice([1500, 65536])):
            length += len(data)
            digest.update(data)
        if kind == 1:
            return count("server: a reset came as an end")
        c.sendall(struct.pack("<I", length) + digest.digest() + bytes(wanted))
    except (ConnectionResetError, BrokenPipeError):
        count("server: reset")
    except TimeoutError:
        count("server: waited in vain")
    finally:
        c.close()


def chunks(data):
    at = 0
    while at < len(data):
        size = random.choice([1, 7, 1460, 4096, 65536, 300_000])
        yield data[at:at + size]
        at += size


def one(front):
    kind = random.choice([0, 0, 0, 1, 2])
    data = random.randbytes(random.choice([0, 1, 100, 5_000, 70_000, 500_000, 2_000_000]))
    wanted = random.choice([0, 1, 3_000, 200_000, 1_000_000])
    try:
        s = socket.create_connection(front, timeout=PATIENCE)
        s.sendall(struct.pack("<II", kind, wanted))
        if kind == 2:
            for size in [1, 100, 20_000]:
                s.sendall(data[:size])
                if s.recv(len(data[:size]), socket.MSG_WAITALL) != data[:size]:
                    return count("client: another echo")
            s.close()
            return count("client: echo")
        for chunk in chunks(data):
            s.sendall(chunk)
        if kind == 1:
            reset(s)
            return count("client: reset")
        s.shutdown(socket.SHUT_WR)
        answer = b""
        while more := s.recv(65536):
            answer += more
        s.close()
        if len(answer) < 36:
            return count("client: no answer but an end")
        length, digest = struct.unpack("<I32s", answer[:36])
        if length != len(data):
            count("client: the server read fewer bytes" if length < len(data) else "client: the server read more bytes")
        elif digest != hashlib.sha256(data).digest():
            count("client: other bytes, as many")
        elif len(answer) != 36 + wanted:
            count("client: an answer cut short")
        else:
            count("client: whole")
    except TimeoutError:
        count("client: waited in vain")
    except OSError as error:
        count(f"client: {type(error).__name__}")


def accept(listener, handle, *more):
    while True:
        c, _ = listener.accept()
        threading.Thread(target=handle, args=(c, *more), daemon=True).start()


def many(front):
    for _ in range(COUNT // AT_ONCE):
        one(front)


table = load() if WAY == "sockmap" else None
back, server = listen()
middle, front = listen()
threading.Thread(target=accept, args=(back, serve), daemon=True).start()
threading.Thread(target=accept, args=(middle, proxy, server), daemon=True).start()
crowd = [threading.Thread(target=many, args=(front,)) for _ in range(AT_ONCE)]
[t.start() for t in crowd], [t.join() for t in crowd]
print(f"{os.uname().release}, {WAY}, {COUNT} connections, {AT_ONCE} at once")
for what, times in sorted(seen.items()):
    print(f"{times:>12} {what}")
