"""A gRPC server without generated code that answers every call with what it saw, as JSON: grpc_echo.py PORT NAME."""
import json
import sys
from concurrent import futures

import grpc


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        metadata = {}
        for name, value in details.invocation_metadata:
            metadata.setdefault(name, []).append(value if isinstance(value, str) else value.hex())
        said = json.dumps({"pod": sys.argv[2], "method": details.method, "metadata": metadata}).encode()
        return grpc.unary_unary_rpc_method_handler(lambda request, context: said)


server = grpc.server(futures.ThreadPoolExecutor(16))
server.add_generic_rpc_handlers((Echo(),))
server.add_insecure_port("[::]:" + sys.argv[1])
server.start()
server.wait_for_termination()
