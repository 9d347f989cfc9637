"""A gRPC server without generated code: messages are plain bytes."""
import sys
from concurrent import futures

import grpc


def hello(request, context):
    return b"hello " + request + b", you are " + context.peer().encode()


def count(request, context):
    for number in range(int(request)):
        yield str(number).encode()


handlers = {
    "Hello": grpc.unary_unary_rpc_method_handler(hello),
    "Count": grpc.unary_stream_rpc_method_handler(count),
}
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("demo.Greeter", handlers),))
server.add_insecure_port("[::]:" + sys.argv[1])
server.start()
server.wait_for_termination()
