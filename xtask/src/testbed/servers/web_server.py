"""HTTP/1.1 on a port, in a way of its own: says its name, fails with a status, or takes its time.

web_server.py PORT NAME [STATUS [SECONDS]]. Writes a line for each request.
"""

import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import socket

PORT, NAME = int(sys.argv[1]), sys.argv[2]
STATUS = int(sys.argv[3]) if len(sys.argv) > 3 else 200
SECONDS = float(sys.argv[4]) if len(sys.argv) > 4 else 0


def tell(line):
    """In one piece: print() writes its parts one by one, and other threads come between them."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Web(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        tell("request " + self.path)
        time.sleep(SECONDS)
        body = f"{NAME}\n".encode()
        self.send_response(STATUS)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 256


Server(("::", PORT), Web).serve_forever()
