"""Makes gRPC calls one after the other and prints a line of JSON for each: grpc_calls.py TARGET METHOD METADATA COUNT.
METADATA is a list of pairs, as JSON."""
import json
import sys

import grpc

target, method, metadata, count = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
channel = grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)])
call = channel.unary_unary(method)
for _ in range(count):
    try:
        said = json.loads(call(b"", timeout=20, metadata=[tuple(pair) for pair in metadata], wait_for_ready=True))
        print(json.dumps({"code": "OK", **said}))
    except grpc.RpcError as error:
        print(json.dumps({"code": error.code().name, "details": error.details()}))
