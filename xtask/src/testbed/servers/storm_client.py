"""A stranger at a port that speaks TLS: storm_client.py HOST PORT SILENT RATE. Holds SILENT connections on which it says
nothing, and comes again when it is turned away. Beside them it makes RATE handshakes a second, each due at its time, and
leaves after each. Says how far it is in lines of JSON."""
import json
import select
import socket
import ssl
import struct
import sys
import threading
import time

host, port, silent, rate = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
THREADS = 8
LEAVES_AT_ONCE = struct.pack("ii", 1, 0)
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
tls.minimum_version = ssl.TLSVersion.TLSv1_3
tls.set_alpn_protocols(["h2"])
done, failed = [0] * THREADS, [0] * THREADS


def handshake():
    s = socket.create_connection((host, port), 10)
    # No port waits for the peer's last word: there are only so many.
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LEAVES_AT_ONCE)
    with tls.wrap_socket(s):
        pass


def storm(thread, begin):
    number = thread
    while True:
        time.sleep(max(0, begin + number / rate - time.monotonic()))
        number += THREADS
        try:
            handshake()
            done[thread] += 1
        except OSError:
            failed[thread] += 1


def hold(poll, held):
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    s.setblocking(False)
    s.connect_ex((host, port))
    held[s.fileno()] = s
    poll.register(s, select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP)


poll, held, turned_away = select.epoll(), {}, 0
for _ in range(silent):
    hold(poll, held)
for thread in range(THREADS):
    threading.Thread(target=storm, args=(thread, time.monotonic()), daemon=True).start()
said = time.monotonic()
while True:
    for descriptor, _ in poll.poll(0.1):
        poll.unregister(descriptor)
        held.pop(descriptor).close()
        turned_away += 1
        hold(poll, held)
    if time.monotonic() - said > 0.1:
        said = time.monotonic()
        line = {"at": said, "done": sum(done), "failed": sum(failed), "silent": len(held), "turned_away": turned_away}
        print(json.dumps(line), flush=True)
