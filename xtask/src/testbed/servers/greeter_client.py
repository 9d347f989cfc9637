"""Calls the greeter: one unary call, one stream. Exits with 1 and the gRPC status if either fails."""
import sys

import grpc

target, name = sys.argv[1:]
with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
    try:
        hello = channel.unary_unary("/demo.Greeter/Hello")
        print(hello(name.encode(), timeout=30).decode())
        count = channel.unary_stream("/demo.Greeter/Count")
        print("counted", len(list(count(b"100", timeout=30))))
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
