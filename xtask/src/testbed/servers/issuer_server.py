"""An issuer of tokens: its keys over HTTPS, and a token in a file. The key is made by openssl (Ed25519), as is the
certificate, a file of both of which is given."""
import base64
import http.server
import json
import socket
import ssl
import subprocess
import sys
import time


def tell(line):
    """In one piece: print() writes its parts one by one, and other threads come between them."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def openssl(*arguments, **options):
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True, **options).stdout


def encoded(content):
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


port, certificate, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
key = directory + "/signer.pem"
openssl("genpkey", "-algorithm", "ed25519", "-out", key)
public = openssl("pkey", "-in", key, "-pubout", "-outform", "DER")[-32:]
keys = json.dumps({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "one", "alg": "EdDSA", "x": encoded(public)}]})

head = encoded(json.dumps({"alg": "EdDSA", "kid": "one"}).encode())
claims = {"iss": "https://issuer.example", "sub": "alice", "exp": int(time.time()) + 3600}
signed = head + "." + encoded(json.dumps(claims).encode())
with open(directory + "/signed", "w") as file:
    file.write(signed)
signature = openssl("pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", directory + "/signed")
with open(directory + "/token", "w") as file:
    file.write(signed + "." + encoded(signature))


class Keys(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        tell("request " + self.path)
        self.send_response(200 if self.path == "/keys" else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(keys)))
        self.end_headers()
        self.wfile.write(keys.encode())

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


server = Server(("::", port), Keys)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
