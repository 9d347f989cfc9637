"""A gRPC server without generated code: messages are plain bytes."""
import sys
import time
from concurrent import futures

import grpc


def hello(request, context):
    return b"hello " + request + b", you are " + context.peer().encode()


def count(request, context):
    for number in range(int(request)):
        yield str(number).encode()


def chat(requests, context):
    for request in requests:
        yield request[::-1]


def gather(requests, context):
    return str(sum(len(request) for request in requests)).encode()


cancelled = 0


def wait(request, context):
    """Sleeps for so many seconds, and counts who did not wait for it."""
    global cancelled
    for _ in range(int(float(request) * 100)):
        if not context.is_active():
            cancelled += 1
            return b""
        time.sleep(0.01)
    return b"waited"


def given_up(request, context):
    return str(cancelled).encode()


handlers = {
    "Hello": grpc.unary_unary_rpc_method_handler(hello),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
    "Gather": grpc.stream_unary_rpc_method_handler(gather),
    "Wait": grpc.unary_unary_rpc_method_handler(wait),
    "GivenUp": grpc.unary_unary_rpc_method_handler(given_up),
}
server = grpc.server(futures.ThreadPoolExecutor(32))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("demo.Greeter", handlers),))
server.add_insecure_port("[::]:" + sys.argv[1])
server.start()
server.wait_for_termination()
