"""The conformance client on gRPC's C core: the cases of gRPC's interop tests, and more.

Usage: client.py PROTOSET ADDRESS CASE...      (Debian: python3-grpcio, python3-protobuf)
A line for each case: "ok CASE", or "not ok CASE: why". PROTOSET has the descriptors of grpc.testing. SIZES=small makes every message small, for recordings.
"""
import collections
import math
import os
import queue
import sys
import time
from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, message_factory

protoset, address, *wanted = sys.argv[1:]
SCALE = 1000 if os.environ.get("SIZES") == "small" else 1
PATIENCE = 20

with open(protoset, "rb") as f:
    messages = message_factory.GetMessages(descriptor_pb2.FileDescriptorSet.FromString(f.read()).file)


def message(of, **fields):
    return messages["grpc.testing." + of](**fields)


def size(n):
    return math.ceil(n / SCALE)


def zeros(n):
    return message("Payload", body=bytes(size(n)))


def ask(*sizes, payload=None):
    return message("StreamingOutputCallRequest", payload=payload,
                   response_parameters=[message("ResponseParameters", size=size(n)) for n in sizes])


class Client:
    """A channel with a connection of its own, and the methods of TestService."""

    def __init__(self, *options, service="TestService", **more):
        options = (("grpc.use_local_subchannel_pool", 1),) + options
        self.channel = grpc.insecure_channel(address, options=options, **more)
        for name, kind, request, response in (
                ("EmptyCall", "unary_unary", "Empty", "Empty"),
                ("UnaryCall", "unary_unary", "SimpleRequest", "SimpleResponse"),
                ("UnimplementedCall", "unary_unary", "Empty", "Empty"),
                ("StreamingInputCall", "stream_unary", "StreamingInputCallRequest", "StreamingInputCallResponse"),
                ("StreamingOutputCall", "unary_stream", "StreamingOutputCallRequest", "StreamingOutputCallResponse"),
                ("FullDuplexCall", "stream_stream", "StreamingOutputCallRequest", "StreamingOutputCallResponse")):
            setattr(self, name, getattr(self.channel, kind)(
                "/grpc.testing.%s/%s" % (service, name),
                request_serializer=messages["grpc.testing." + request].SerializeToString,
                response_deserializer=messages["grpc.testing." + response].FromString))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()


class Duplex:
    """A FullDuplexCall whose messages are sent one by one; None ends them."""

    def __init__(self, client, timeout=PATIENCE, **more):
        self.requests = queue.Queue()
        self.call = client.FullDuplexCall(iter(self.requests.get, None), timeout=timeout, **more)

    def ping_pong(self, *sizes):
        for request, response in sizes:
            self.requests.put(ask(response, payload=zeros(request)))
            equal(len(next(self.call).payload.body), size(response))

    def close(self):
        self.requests.put(None)
        equal(list(self.call), [])
        equal(self.call.code(), grpc.StatusCode.OK)


INTEROP_SIZES = ((27182, 31415), (8, 9), (1828, 2653), (45904, 58979))


def equal(got, want):
    if got != want:
        raise AssertionError("got %.200r, want %.200r" % (got, want))


def fails(code, details, f, *args, **kwargs):
    """Wants a call to fail with this code and, unless None, these details."""
    try:
        f(*args, timeout=PATIENCE, **kwargs)
    except grpc.RpcError as e:
        equal(e.code(), code)
        if details is not None:
            equal(e.details(), details)
    else:
        raise AssertionError("the call succeeded")


def empty_unary(c):
    equal(c.EmptyCall(message("Empty"), timeout=PATIENCE), message("Empty"))


def large_unary(c, request=271828, response=314159, **fields):
    got = c.UnaryCall(message("SimpleRequest", response_size=size(response), payload=zeros(request), **fields), timeout=PATIENCE)
    equal(got.payload.body == bytes(size(response)), True)


def three_megabytes(c):
    large_unary(c, 3 << 20, 3 << 20)


def client_streaming(c):
    sizes = (27182, 8, 1828, 45904)
    got = c.StreamingInputCall((message("StreamingInputCallRequest", payload=zeros(n)) for n in sizes), timeout=PATIENCE)
    equal(got.aggregated_payload_size, sum(size(n) for n in sizes))


def server_streaming(c):
    sizes = (31415, 9, 2653, 58979)
    equal([len(m.payload.body) for m in c.StreamingOutputCall(ask(*sizes), timeout=PATIENCE)], [size(n) for n in sizes])


def ping_pong(c):
    s = Duplex(c)
    s.ping_pong(*INTEROP_SIZES)
    s.close()


def empty_stream(c):
    Duplex(c).close()


def custom_metadata(c):
    everything = bytes(range(256))
    metadata = (("x-grpc-test-echo-initial", "test_initial_metadata_value"), ("x-grpc-test-echo-trailing-bin", everything))

    def check(call):
        equal(dict(call.initial_metadata()).get("x-grpc-test-echo-initial"), "test_initial_metadata_value")
        equal(dict(call.trailing_metadata()).get("x-grpc-test-echo-trailing-bin"), everything)

    request = message("SimpleRequest", response_size=size(314159), payload=zeros(271828))
    _, call = c.UnaryCall.with_call(request, metadata=metadata, timeout=PATIENCE)
    check(call)
    s = Duplex(c, metadata=metadata)
    s.ping_pong((271828, 314159))
    s.close()
    check(s.call)


def much_metadata(c):
    value = "v" * 3500
    for _ in range(3):
        _, call = c.UnaryCall.with_call(message("SimpleRequest", response_size=1), timeout=PATIENCE,
                                        metadata=(("x-grpc-test-echo-initial", value), ("x-other", value)))
        equal(dict(call.initial_metadata()).get("x-grpc-test-echo-initial"), value)


def status_code_and_message(c):
    wanted = message("EchoStatus", code=2, message="test status message")
    fails(grpc.StatusCode.UNKNOWN, wanted.message, c.UnaryCall, message("SimpleRequest", response_status=wanted))
    s = Duplex(c)
    s.requests.put(message("StreamingOutputCallRequest", response_status=wanted))
    s.requests.put(None)
    equal(s.call.code(), grpc.StatusCode.UNKNOWN)
    equal(s.call.details(), wanted.message)


def every_status_code(c):
    for code in grpc.StatusCode:
        n = code.value[0]
        if n:
            wanted = message("EchoStatus", code=n, message="code %d" % n)
            fails(code, wanted.message, c.UnaryCall, message("SimpleRequest", response_status=wanted))


def special_status_message(c):
    text = "\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \U0001f608\t\n 100 % %41"
    wanted = message("EchoStatus", code=2, message=text)
    fails(grpc.StatusCode.UNKNOWN, text, c.UnaryCall, message("SimpleRequest", response_status=wanted))


def unimplemented_method(c):
    fails(grpc.StatusCode.UNIMPLEMENTED, None, c.UnimplementedCall, message("Empty"))


def unimplemented_service(_):
    with Client(service="UnimplementedService") as c:
        fails(grpc.StatusCode.UNIMPLEMENTED, None, c.UnimplementedCall, message("Empty"))


def deadline(c):
    began = time.monotonic()
    s = Duplex(c, timeout=0.3)
    s.requests.put(message("StreamingOutputCallRequest", response_parameters=[message("ResponseParameters", size=1, interval_us=5_000_000)]))
    equal(s.call.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
    equal(time.monotonic() - began < 3, True)
    s.requests.put(None)
    empty_unary(c)  # the connection is as good as before


def cancel_after_begin(c):
    requests = queue.Queue()
    call = c.StreamingInputCall.future(iter(requests.get, None), timeout=PATIENCE)
    call.cancel()
    equal(call.code(), grpc.StatusCode.CANCELLED)
    requests.put(None)
    empty_unary(c)


def cancel_after_first_response(c):
    s = Duplex(c)
    s.ping_pong(INTEROP_SIZES[0])
    s.call.cancel()
    equal(s.call.code(), grpc.StatusCode.CANCELLED)
    s.requests.put(None)
    empty_unary(c)


def gzip(_):
    with Client(compression=grpc.Compression.Gzip) as c:
        yes = message("BoolValue", value=True)
        large_unary(c, response_compressed=yes, expect_compressed=yes)
        s = Duplex(c)
        s.ping_pong(*INTEROP_SIZES)
        s.close()


def deflate(_):
    with Client(compression=grpc.Compression.Deflate) as c:
        large_unary(c)


def keepalive(_):
    """Pings every second, each to be answered within two; a stream that was silent meanwhile goes on."""
    with Client(("grpc.keepalive_time_ms", 1000), ("grpc.keepalive_timeout_ms", 2000), ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_pings_without_data", 0)) as c:
        s = Duplex(c)
        s.ping_pong((1, 1))
        time.sleep(4)
        s.ping_pong((1, 1))
        s.close()


def parallel(n, f):
    with futures.ThreadPoolExecutor(max_workers=n) as pool:
        for done in [pool.submit(f, i) for i in range(n)]:
            done.result()


def parallel_unary(c):
    """320 calls, 40 at a time, over one connection."""
    few = 8 if SCALE > 1 else 40

    def some(i):
        for n in range(8):
            large_unary(c, (i * 8 + n) * 50, (i * 8 + n) * 40)

    parallel(few, some)


def parallel_streams(c):
    """40 streams at once, over one connection, with messages of many sizes."""
    few = 4 if SCALE > 1 else 40

    def one(i):
        s = Duplex(c)
        for n in range(20):
            s.ping_pong(((i * 613 + n * 97) % 20000, (i * 97 + n * 613) % 20000))
        s.close()

    parallel(few, one)


def spread(c):
    """Each server has its turn: 100 calls, and nobody has fewer than a quarter."""
    seen = collections.Counter(c.UnaryCall(message("SimpleRequest", fill_server_id=True), timeout=PATIENCE).server_id for _ in range(100))
    if len(seen) < 2 or min(seen.values()) < 25:
        raise AssertionError(str(seen))


def main():
    bad = 0
    for name in wanted:
        try:
            with Client() as c:
                globals()[name](c)
            print("ok " + name, flush=True)
        except Exception as e:  # whatever it is, the case didn't pass
            bad += 1
            print("not ok %s: %s" % (name, repr(e).replace("\n", " | ")), flush=True)
    sys.stdout.flush()
    os._exit(1 if bad else 0)  # a call that hangs has a thread, which isn't waited for


main()
