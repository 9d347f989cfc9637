"""Sockets as few programs use them.

serve            listens on the ports below, in each form of address, and tells who connects what it sees of it
hold PATH        takes sockets of other processes by the unix socket PATH and talks on them
dial FORM SERVER OWN PATH
                 makes every kind of connection from OWN to SERVER; a line of JSON for each: its kind, the addresses
                 of its connections, and what both ends saw

A form is v4, v6, or mapped: IPv4 addresses in IPv6 sockets, at both ends. `*` stands for the port of the client's end.
"""
import ctypes
import errno
import json
import mmap
import os
import select
import socket
import struct
import sys
import threading
import zlib

PLAIN, SECOND, MPTCP, FASTOPEN, URING, WINDOW, DEVICE, DATAGRAMS, URGENT, TINY = range(7000, 7010)
# Ports of sockets that take IPv4 and IPv6, beside those that take one of them.
DUAL = 100
# Ports that clients bind, a few for each form.
BOUND = {"v4": 41000, "v6": 41100, "mapped": 41200}

TCP_FASTOPEN_CONNECT, TCPI_OPT_SYN_DATA = 30, 32
SOL_MPTCP, MPTCP_INFO = 284, 1
SMALLEST_SEGMENT, LARGEST_WINDOW = 88, 65535
WORD = bytes(range(256)) * 4
LARGE = WORD * 1024
PATIENCE = struct.pack("ll", 10, 0)

libc = ctypes.CDLL(None, use_errno=True)


# Both ends.


def text(address):
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def raw(address):
    """The address as the kernel takes it."""
    host, port = address[:2]
    if ":" in host:
        bare = struct.pack("!HI16sI", port, 0, socket.inet_pton(socket.AF_INET6, host), 0)
        return struct.pack("=H", socket.AF_INET6) + bare
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, socket.inet_aton(host))


def cooked(data):
    family, port = struct.unpack("=H", data[:2])[0], struct.unpack("!H", data[2:4])[0]
    host = data[8:24] if family == socket.AF_INET6 else data[4:8]
    return socket.inet_ntop(family, host), port


def make(family, protocol=0):
    s = socket.socket(family, socket.SOCK_STREAM, protocol)
    # Not settimeout(), with which sockets are never blocking ones.
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, PATIENCE)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, PATIENCE)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return s


def read(s, length):
    """So many bytes, or fewer if they end before."""
    parts = []
    while length > 0 and (part := s.recv(min(length, 1 << 16))):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def packed(data):
    return struct.pack("!I", len(data)) + data


def unpacked(s):
    return read(s, struct.unpack("!I", read(s, 4))[0])


def frames(data):
    """The parts that are whole of what packed() made."""
    found = []
    while len(data) >= 4 and len(data) >= 4 + (length := struct.unpack("!I", data[:4])[0]):
        found.append(data[4:4 + length])
        data = data[4 + length:]
    return found


def protocol(s):
    try:
        s.getsockopt(SOL_MPTCP, MPTCP_INFO, 4)
        return "mptcp"
    except OSError:
        return "tcp"


class Ring:
    """An io_uring of one entry, by system calls alone."""

    ACCEPT, CONNECT = 13, 16
    SETUP, ENTER, WAIT = 425, 426, 1
    ENTRY, RESULT = 64, 16

    def __init__(self):
        params = ctypes.create_string_buffer(120)
        self.fd = self.call(self.SETUP, 1, params)
        words = struct.unpack("30I", params.raw)
        self.sq, self.cq = words[10:20], words[20:30]
        share = lambda size, at: mmap.mmap(self.fd, size, mmap.MAP_SHARED, offset=at)
        self.submissions = share(self.sq[6] + 4 * words[0], 0)
        self.completions = share(self.cq[5] + self.RESULT * words[1], 0x8000000)
        self.entries = share(self.ENTRY * words[0], 0x10000000)

    @staticmethod
    def call(*arguments):
        result = libc.syscall(*arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), "io_uring")
        return result

    def run(self, operation, fd, address, length):
        """What the operation returns; an error is raised. `length` is a number or where one is."""
        word = lambda memory, at: struct.unpack_from("I", memory, at)[0]
        struct.pack_into("BBHiQQ", self.entries, 0, operation, 0, 0, fd, length, ctypes.addressof(address))
        tail = word(self.submissions, self.sq[1])
        struct.pack_into("I", self.submissions, self.sq[6] + 4 * (tail & word(self.submissions, self.sq[2])), 0)
        struct.pack_into("I", self.submissions, self.sq[1], tail + 1)
        self.call(self.ENTER, self.fd, 1, 1, self.WAIT, None, 0)
        head = word(self.completions, self.cq[0])
        at = self.cq[5] + self.RESULT * (head & word(self.completions, self.cq[2]))
        result = struct.unpack_from("i", self.completions, at + 8)[0]
        struct.pack_into("I", self.completions, self.cq[0], head + 1)
        if result < 0:
            raise OSError(-result, "io_uring")
        return result

    def connect(self, s, address):
        data = raw(address)
        self.run(self.CONNECT, s.fileno(), ctypes.create_string_buffer(data, len(data)), len(data))

    def accept(self, s):
        address, length = ctypes.create_string_buffer(28), ctypes.c_int(28)
        fd = self.run(self.ACCEPT, s.fileno(), address, ctypes.addressof(length))
        return socket.socket(fileno=fd), cooked(address.raw)


# The server's end.


def answer(s, accepted):
    """Until the client has no more to ask: what is seen of the connection, and the question backwards."""
    while head := read(s, 4):
        question = read(s, struct.unpack("!I", head)[0])
        seen = {"accepted": text(accepted), "peer": text(s.getpeername()), "local": text(s.getsockname())}
        seen |= {"got": zlib.crc32(question), "protocol": protocol(s)}
        s.sendall(packed(json.dumps(seen).encode()) + packed(question[::-1]))


def answer_urgent(s, accepted):
    poll = select.poll()
    poll.register(s, select.POLLPRI)
    out = s.recv(1, socket.MSG_OOB) if poll.poll(2000) else b""
    s.sendall(json.dumps({"in": read(s, 1 << 20).decode(), "out": out.decode()}).encode())


def keep(s, accepted, how):
    with s:
        try:
            how(s, accepted)
        except OSError as error:
            print(text(accepted), error, flush=True)


def listeners(family, dual):
    def listener(port, protocol=0, options=(), how=answer, ring=None):
        s = make(family, protocol)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))
        if family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        for option in options:
            s.setsockopt(*option)
        s.bind(("", port + DUAL * dual))
        s.listen(64)

        def accept():
            while True:
                connection, accepted = ring.accept(s) if ring else s.accept()
                threading.Thread(target=keep, args=(connection, accepted, how), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()

    tcp, any_socket = socket.IPPROTO_TCP, socket.SOL_SOCKET
    listener(PLAIN)
    listener(SECOND)
    listener(MPTCP, socket.IPPROTO_MPTCP)
    listener(FASTOPEN, options=[(tcp, socket.TCP_FASTOPEN, 16)])
    listener(URING, ring=Ring())
    listener(WINDOW, options=[(any_socket, socket.SO_RCVBUF, 1 << 15), (tcp, socket.TCP_WINDOW_CLAMP, LARGEST_WINDOW)])
    listener(DEVICE, options=[(any_socket, socket.SO_BINDTODEVICE, b"eth0\0")])
    listener(URGENT, how=answer_urgent)
    listener(TINY, options=[(tcp, socket.TCP_MAXSEG, SMALLEST_SEGMENT), (tcp, socket.TCP_NODELAY, 1)])
    threading.Thread(target=echo, args=(family, dual), daemon=True).start()


def echo(family, dual):
    s = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
    s.bind(("", DATAGRAMS + DUAL * dual))
    while True:
        _, sender = s.recvfrom(2048)
        s.sendto(text(sender).encode(), sender)


def serve():
    # 1 is the client's part, and what it is in a new network namespace.
    with open("/proc/sys/net/ipv4/tcp_fastopen", "w") as setting:
        setting.write("3")
    listeners(socket.AF_INET, False)
    listeners(socket.AF_INET6, False)
    listeners(socket.AF_INET6, True)
    print("ready", flush=True)
    threading.Event().wait()


def hold(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    while True:
        with listener.accept()[0] as whose:
            wish, fds, _, _ = socket.recv_fds(whose, 4096, 1)
            address = json.loads(wish)
            with socket.socket(fileno=fds[0]) as s:
                try:
                    if address:
                        s.connect(tuple(address))
                    seen = talk(s)
                except OSError as error:
                    seen = {"error": name(error)}
            whose.sendall(json.dumps(seen).encode())


# The client's end.


def name(error):
    return errno.errorcode.get(error.errno, str(error))


def talk(s, question=WORD, one_by_one=0):
    """Asks, and says what both ends see of the connection. Some bytes may go in a segment each."""
    data = packed(question)
    for at in range(one_by_one):
        s.sendall(data[at:at + 1])
    s.sendall(data[one_by_one:])
    return told(s, question)


def told(s, question=WORD):
    """The answer to what was asked."""
    server, backwards = json.loads(unpacked(s)), unpacked(s)
    own = s.getsockname()
    star = lambda seen: seen.replace(f":{own[1]}", ":*") if isinstance(seen, str) else seen
    seen = {"peer": text(s.getpeername()), "own": star(text(own)), "protocol": protocol(s)}
    seen |= {"server's " + what: star(it) for what, it in server.items()}
    whole = server["got"] == zlib.crc32(question) and backwards == question[::-1]
    return seen | {"bytes": "whole" if whole else "changed", "client": text(own)}


class Edges:
    """A socket by epoll's edges: after each, everything is read that is there."""

    NAMES = {select.EPOLLIN: "in", select.EPOLLOUT: "out", select.EPOLLRDHUP: "rdhup", select.EPOLLHUP: "hup"}

    def __init__(self, s, epoll):
        self.s, self.epoll, self.got, self.ended = s, epoll, b"", False
        epoll.register(s, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)

    def until(self, done):
        """Which events there were meanwhile."""
        self.seen = 0
        while not done():
            ready = self.epoll.poll(10)
            if not ready:
                raise TimeoutError(errno.ETIMEDOUT, "no edge")
            self.seen |= ready[0][1]
            if ready[0][1] & select.EPOLLIN:
                self.read()
        return " ".join(name for event, name in self.NAMES.items() if self.seen & event)

    def read(self):
        try:
            while part := self.s.recv(1 << 16):
                self.got += part
            self.ended = True
        except BlockingIOError:
            pass


class Client:
    """A function for each kind of connection, by the name that it is printed with."""

    def __init__(self, form, server, own, path):
        prefix = "::ffff:" if form == "mapped" else ""
        self.form, self.server, self.own, self.path = form, prefix + server, prefix + own, path
        self.family = socket.AF_INET if form == "v4" else socket.AF_INET6

    def address(self, port):
        return self.server, port + DUAL * (self.form == "mapped")

    def dial(self, port=PLAIN, protocol=0, options=(), bind=None):
        s = make(self.family, protocol)
        for option in options:
            s.setsockopt(*option)
        if bind:
            s.bind(bind)
        s.connect(self.address(port))
        return s

    def accept4(self):
        with self.dial() as s:
            return talk(s)

    def io_uring(self):
        with make(self.family) as s:
            Ring().connect(s, self.address(URING))
            return talk(s)

    def mptcp_client(self):
        with self.dial(PLAIN, socket.IPPROTO_MPTCP) as s:
            return talk(s)

    def mptcp_server(self):
        with self.dial(MPTCP) as s:
            return talk(s)

    def mptcp_both(self):
        with self.dial(MPTCP, socket.IPPROTO_MPTCP) as s:
            return talk(s)

    def fastopen(self):
        """The first may have to fetch the cookie with which the second sends data in its SYN."""
        for _ in range(2):
            with make(self.family) as s:
                s.sendto(packed(WORD), socket.MSG_FASTOPEN, self.address(FASTOPEN))
                seen = told(s)
                options = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]
        return seen | {"data in the SYN": "yes" if options & TCPI_OPT_SYN_DATA else "no"}

    def fastopen_connect(self):
        with self.dial(FASTOPEN, options=[(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)]) as s:
            return talk(s)

    def bound(self):
        return self.from_one_port((self.own, BOUND[self.form]))

    def bound_to_any_address(self):
        return self.from_one_port(("", BOUND[self.form] + 1))

    def from_one_port(self, bind):
        """Two destinations at a time, then one of them once more."""
        with self.dial(bind=bind) as first, self.dial(SECOND, bind=bind) as second:
            seen = {"first": talk(first), "second": talk(second), "port": str(second.getsockname()[1])}
            try:
                with self.dial(bind=bind) as again:
                    return seen | {"again": talk(again)["bytes"]}
            except OSError as error:
                return seen | {"again": name(error)}

    def bound_to_loopback(self):
        """Leads nowhere. How that is told depends on the family, and on the mesh."""
        loopback = {"v4": "127.0.0.1", "v6": "::1", "mapped": "::ffff:127.0.0.1"}[self.form]
        soon = (socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 2, 0))
        try:
            with self.dial(options=[soon], bind=(loopback, 0)) as s:
                return talk(s)
        except OSError as error:
            print("bound to loopback:", name(error), file=sys.stderr)
            return {"connected": "no"}

    def device(self):
        with self.dial(options=[(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")]) as s:
            device = s.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
            return talk(s) | {"device": device.rstrip(b"\0").decode()}

    def device_of_the_server(self):
        try:
            with self.dial(DEVICE) as s:
                return {"bytes": talk(s)["bytes"]}
        except OSError as error:
            return {"bytes": name(error)}

    def unspec(self):
        """Connected, told so, dissolved, connected to another."""
        with self.dial() as s:
            seen = {"first": talk(s)}
            seen["again"] = errno.errorcode[s.connect_ex(self.address(SECOND))]
            if libc.connect(s.fileno(), struct.pack("=H14x", socket.AF_UNSPEC), 16):
                raise OSError(ctypes.get_errno(), "AF_UNSPEC")
            try:
                seen["between"] = text(s.getpeername())
            except OSError as error:
                seen["between"] = name(error)
            s.connect(self.address(SECOND))
            return seen | {"second": talk(s)}

    def epoll_edges(self):
        with make(self.family) as s, select.epoll() as epoll:
            s.setblocking(False)
            seen = {"connect": errno.errorcode[s.connect_ex(self.address(PLAIN))]}
            edges = Edges(s, epoll)
            seen["connected"] = edges.until(lambda: edges.seen & select.EPOLLOUT)
            s.send(packed(WORD))
            seen["answered"] = edges.until(lambda: len(frames(edges.got)) == 2)
            client, peer = text(s.getsockname()), text(s.getpeername())
            s.shutdown(socket.SHUT_WR)
            seen["ended"] = edges.until(lambda: edges.ended)
            server, backwards = frames(edges.got)
            seen["server's peer"] = "own" if json.loads(server)["peer"] == client else "another"
            seen["bytes"] = "whole" if backwards == WORD[::-1] else "changed"
            return seen | {"peer": peer, "client": client}

    def forked(self):
        """The parent talks and lets go, the child goes on."""
        ours, childs = socket.socketpair()
        with self.dial() as s:
            seen = {"parent": talk(s)}
            if not (child := os.fork()):
                try:
                    childs.recv(1)
                    childs.sendall(json.dumps(talk(s)).encode())
                finally:
                    os._exit(0)
        childs.close()
        ours.sendall(b"!")
        seen["child"] = json.loads(read(ours, 1 << 16))
        os.waitpid(child, 0)
        return seen

    def passed(self):
        with self.dial() as s:
            return {"before": talk(s), "there": self.elsewhere(s, None), "after": talk(s)}

    def passed_unconnected(self):
        with make(self.family) as s:
            return {"there": self.elsewhere(s, self.address(PLAIN)), "after": talk(s)}

    def elsewhere(self, s, address):
        """What a process of another pod sees of the socket, which it connects first if there is an address."""
        with socket.socket(socket.AF_UNIX) as there:
            there.connect(self.path)
            socket.send_fds(there, [json.dumps(address).encode()], [s.fileno()])
            return json.loads(read(there, 1 << 16))

    def marked(self):
        mark = lambda value: (socket.SOL_SOCKET, socket.SO_MARK, struct.pack("I", value))
        seen = {}
        for value in (1, 1337, 0xFFFFFFFF):
            with self.dial(options=[mark(value)]) as s:
                seen[str(value)] = talk(s)
        return seen

    def urgent(self):
        with self.dial(URGENT) as s:
            client = text(s.getsockname())
            s.sendall(b"before")
            s.send(b"!", socket.MSG_OOB)
            s.sendall(b"after")
            s.shutdown(socket.SHUT_WR)
            return json.loads(read(s, 1 << 16)) | {"client": client}

    def nodelay_and_tiny_segments(self):
        tcp = socket.IPPROTO_TCP
        with self.dial(TINY, options=[(tcp, socket.TCP_MAXSEG, SMALLEST_SEGMENT), (tcp, socket.TCP_NODELAY, 1)]) as s:
            return talk(s, WORD * 256, one_by_one=3000)

    def window_of_64_kib(self):
        clamp = (socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, LARGEST_WINDOW)
        small = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15), clamp]
        # Without scaling no window is larger, whoever opens it in this network namespace.
        setting = "/proc/sys/net/ipv4/tcp_window_scaling"
        with open(setting, "w") as scaling:
            scaling.write("0")
        try:
            with self.dial(WINDOW, options=small) as s:
                return talk(s, LARGE)
        finally:
            with open(setting, "w") as scaling:
                scaling.write("1")

    def connected_datagrams(self):
        with socket.socket(self.family, socket.SOCK_DGRAM) as s:
            s.settimeout(5)
            s.connect(self.address(DATAGRAMS))
            s.send(b"word")
            own = text(s.getsockname())
            return {"peer": text(s.getpeername()), "server's peer": "own" if s.recv(100).decode() == own else "another"}


KINDS = """accept4 io_uring mptcp_client mptcp_server mptcp_both fastopen fastopen_connect bound bound_to_any_address
bound_to_loopback device device_of_the_server unspec epoll_edges forked passed passed_unconnected marked urgent
nodelay_and_tiny_segments window_of_64_kib connected_datagrams""".split()


def clients(seen):
    """Takes the clients' addresses out of what was seen."""
    found = [clients(part) for part in seen.values() if isinstance(part, dict)]
    own = seen.pop("client", None)
    return ([own] if own else []) + sum(found, [])


def dial_all(*arguments):
    client = Client(*arguments)
    for kind in KINDS:
        try:
            seen = getattr(client, kind)()
        except (OSError, struct.error, ValueError) as error:
            seen = {"error": name(error) if isinstance(error, OSError) and error.errno else repr(error)}
        own = clients(seen)
        print(json.dumps({"kind": kind, "clients": own, "seen": seen}), flush=True)


{"serve": serve, "hold": hold, "dial": dial_all}[sys.argv[1]](*sys.argv[2:])
