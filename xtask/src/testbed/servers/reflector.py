"""An HTTP/1.1 server that answers with what it was asked, as JSON: the request, its fields, the length of its body, who
asks, and its own name. `/status/NNN` is answered with that status. reflector.py PORT NAME [FILE]: with a file of a key and
its certificate, over TLS."""
import http.server
import json
import socket
import ssl
import sys


class Reflector(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        length = int(self.headers.get("content-length", 0))
        body = self.rfile.read(length)
        while self.headers.get("transfer-encoding") == "chunked":
            size = int(self.rfile.readline(), 16)
            body += self.rfile.read(size)
            self.rfile.readline()
            if size == 0:
                break
        said = {
            "method": self.command,
            "path": self.path,
            "fields": {name.lower(): self.headers.get_all(name) for name in self.headers},
            "body": len(body),
            "peer": self.client_address[0],
            "pod": sys.argv[2],
        }
        text = json.dumps(said).encode()
        status = int(self.path.removeprefix("/status/")) if self.path.startswith("/status/") else 200
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 128


server = Server(("::", int(sys.argv[1])), Reflector)
if sys.argv[3:]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[3])
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
