"""Takes whatever OTLP brings, and scrapes the agent as a Prometheus does: PORT SCRAPED_PORT."""

import http.client
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Collector(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def scrape(port):
    while True:
        time.sleep(1)
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/metrics")
            connection.getresponse().read()
        except OSError:
            pass  # between two agents


threading.Thread(target=scrape, args=(int(sys.argv[2]),), daemon=True).start()
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Collector).serve_forever()
