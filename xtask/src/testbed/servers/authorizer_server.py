"""Somebody to ask: the check of Envoy by gRPC without generated code on one port, and by HTTP on the next. Whoever asks
for something with `secret` in its path is refused, by both; the others are told apart by a header."""
import http.server
import socket
import sys
import threading
from concurrent import futures

import grpc


def tell(line):
    """In one piece: print() writes its parts one by one, and other threads come between them."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def field(number, content):
    """A field of protobuf that has a length below 128."""
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def header(name, value):
    return field(1, field(1, name) + field(2, value))


def check(request, context):
    # What is asked is plain text within the message.
    tell("grpc " + ("by-client" if b"/sa/client" in request else "by-other"))
    if b"secret" in request:
        denied = field(1, b"\x08\x93\x03") + field(2, header(b"x-said-by", b"grpc")) + field(3, b"refused by grpc\n")
        return field(1, b"\x08\x07") + field(2, denied)
    return field(1, b"") + field(3, field(2, header(b"x-let-in-by", b"grpc")))


class Web(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        principal = self.headers.get("x-nodemesh-source-principal", "")
        tell("http " + ("by-client" if principal.endswith("/sa/client") else "by-other"))
        is_refused = "secret" in self.path
        text = b"refused by http\n" if is_refused else b""
        self.send_response(401 if is_refused else 200)
        self.send_header("x-let-in-by", "http")
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


port = int(sys.argv[1])
web = Server(("::", port + 1), Web)
threading.Thread(target=web.serve_forever, daemon=True).start()
handlers = {"Check": grpc.unary_unary_rpc_method_handler(check)}
server = grpc.server(futures.ThreadPoolExecutor(16))
server.add_generic_rpc_handlers(
    (grpc.method_handlers_generic_handler("envoy.service.auth.v3.Authorization", handlers),)
)
server.add_insecure_port("[::]:" + sys.argv[1])
server.start()
server.wait_for_termination()
