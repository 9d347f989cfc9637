"""Dials a pod as a probe of kubelet does, and says what was answered and from which port: prober.py KIND HOST PORT FROM.
KIND is http, tcp or grpc; FROM is the port to dial from, 0 for any. Its port is free again at once."""
import json
import socket
import struct
import sys

KIND, HOST, PORT, FROM = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
PATIENCE = 10


def connect():
    dial = socket.socket(socket.AF_INET6 if ":" in HOST else socket.AF_INET)
    dial.settimeout(PATIENCE)
    dial.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    dial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if FROM:
        dial.bind(("", FROM))
    dial.connect((HOST, PORT))
    return dial


def until_end(dial):
    said = b""
    while chunk := dial.recv(4096):
        said += chunk
    return said.decode()


def tcp():
    with connect() as dial:
        port = dial.getsockname()[1]
        return until_end(dial), port


def http():
    with connect() as dial:
        port = dial.getsockname()[1]
        dial.sendall(b"GET /healthz HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n")
        return until_end(dial).split("\r\n")[0], port


def grpc():
    import grpc

    host = f"[{HOST}]" if ":" in HOST else HOST
    with grpc.insecure_channel(f"{host}:{PORT}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=PATIENCE)
    return "OK", 0


try:
    said, port = {"http": http, "tcp": tcp, "grpc": grpc}[KIND]()
    print(json.dumps({"said": said, "port": port} if said else {"error": "nothing was said"}))
except Exception as error:
    print(json.dumps({"error": type(error).__name__}))
