"""A gRPC session of every kind of call over one channel; exits with 1 and what went wrong.

With a number of seconds it goes on for as long and says how many calls it made about every second.
"""
import sys
import threading
import time

import grpc

target, seconds = sys.argv[1], float(sys.argv[2])
channel = grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)])
method = "/demo.Greeter/"
hello, wait = channel.unary_unary(method + "Hello"), channel.unary_unary(method + "Wait")
chat, count = channel.stream_stream(method + "Chat"), channel.unary_stream(method + "Count")
gather = channel.stream_unary(method + "Gather")
peers = set()


def expect(what, seen, wanted):
    if seen != wanted:
        sys.exit(f"{what}: {seen!r}, not {wanted!r}")


def unary(calls):
    """Many at a time."""
    answers = [hello.future(b"%d" % number, timeout=60) for number in range(calls)]
    for number, answer in enumerate(answers):
        said, peer = answer.result().split(b", you are ")
        expect("Hello", said, b"hello %d" % number)
        peers.add(peer)
    return calls


def both_ways(messages):
    """A message is sent only when the one before it was answered."""
    answered = threading.Semaphore(1)

    def requests():
        for number in range(messages):
            answered.acquire()
            yield b"%08d" % number

    seen = 0
    for number, answer in enumerate(chat(requests(), timeout=60)):
        expect("Chat", answer, (b"%08d" % number)[::-1])
        seen += 1
        answered.release()
    expect("messages", seen, messages)
    return 1


def one_way(messages):
    expect("Gather", gather((b"x" * 1000 for _ in range(messages)), timeout=60), b"%d" % (1000 * messages))
    expect("Count", len(list(count(b"%d" % messages, timeout=60))), messages)
    return 2


def deadline():
    # Long enough that the server has the call by then.
    try:
        wait(b"5", timeout=1)
    except grpc.RpcError as error:
        return expect("deadline", error.code(), grpc.StatusCode.DEADLINE_EXCEEDED) or 1
    sys.exit("a call outlived its deadline")


def cancel():
    call = wait.future(b"5")
    time.sleep(1)
    call.cancel()
    expect("cancelled", call.cancelled(), True)
    return 1


def noticed():
    """The server has to see that nobody waits any more."""
    given_up = channel.unary_unary(method + "GivenUp")
    for _ in range(600):
        if int(given_up(b"", timeout=30)) >= 2:
            return
        time.sleep(0.05)
    sys.exit("the server did not notice a deadline and a cancellation")


try:
    began, calls, said = time.monotonic(), 0, 0.0
    calls += unary(200) + one_way(500) + both_ways(200) + deadline() + cancel()
    noticed()
    while time.monotonic() - began < seconds:
        calls += unary(10) + both_ways(5) + one_way(20)
        if time.monotonic() - said > 1:
            said = time.monotonic()
            print('{"calls": %d}' % calls, flush=True)
        time.sleep(0.1)
    expect("connections", len(peers), 1)
    print('{"ended": true, "calls": %d, "connections": %d}' % (calls, len(peers)))
except grpc.RpcError as error:
    sys.exit(f"{error.code().name}: {error.details()}")
