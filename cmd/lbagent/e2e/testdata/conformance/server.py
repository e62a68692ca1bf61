"""A server of grpc.testing.TestService on gRPC's C core.

Usage: server.py PROTOSET PORT NAME      (Debian: python3-grpcio, python3-protobuf)
"""
import sys
import time
from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, message_factory

protoset, port, name = sys.argv[1:]
with open(protoset, "rb") as f:
    messages = message_factory.GetMessages(descriptor_pb2.FileDescriptorSet.FromString(f.read()).file)


def message(of):
    return messages["grpc.testing." + of]


def payload(size):
    return message("Payload")(body=bytes(size))


def echo(context):
    """Sends metadata back as the interop tests want it."""
    asked = dict(context.invocation_metadata())
    if "x-grpc-test-echo-initial" in asked:
        context.send_initial_metadata((("x-grpc-test-echo-initial", asked["x-grpc-test-echo-initial"]),))
    if "x-grpc-test-echo-trailing-bin" in asked:
        context.set_trailing_metadata((("x-grpc-test-echo-trailing-bin", asked["x-grpc-test-echo-trailing-bin"]),))


def fail(context, wanted):
    """Ends the call with the wanted status, if there is one; abort raises."""
    for code in grpc.StatusCode:
        if wanted.code and code.value[0] == wanted.code:
            context.abort(code, wanted.message)


def compress(context, wanted):
    if wanted:
        context.set_compression(grpc.Compression.Gzip)


def empty_call(request, context):
    echo(context)
    return message("Empty")()


def unary_call(request, context):
    compress(context, request.response_compressed.value)
    echo(context)
    fail(context, request.response_status)
    return message("SimpleResponse")(payload=payload(request.response_size), server_id=name if request.fill_server_id else "")


def streaming_input_call(requests, context):
    return message("StreamingInputCallResponse")(aggregated_payload_size=sum(len(r.payload.body) for r in requests))


def answers(request):
    for p in request.response_parameters:
        time.sleep(p.interval_us / 1e6)
        yield message("StreamingOutputCallResponse")(payload=payload(p.size))


def streaming_output_call(request, context):
    yield from answers(request)


def full_duplex_call(requests, context):
    echo(context)
    for request in requests:
        fail(context, request.response_status)
        yield from answers(request)


def handler(kind, f, request, response):
    return kind(f, request_deserializer=message(request).FromString, response_serializer=message(response).SerializeToString)


server = grpc.server(futures.ThreadPoolExecutor(max_workers=150))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.testing.TestService", {
    "EmptyCall": handler(grpc.unary_unary_rpc_method_handler, empty_call, "Empty", "Empty"),
    "UnaryCall": handler(grpc.unary_unary_rpc_method_handler, unary_call, "SimpleRequest", "SimpleResponse"),
    "StreamingInputCall": handler(grpc.stream_unary_rpc_method_handler, streaming_input_call,
                                  "StreamingInputCallRequest", "StreamingInputCallResponse"),
    "StreamingOutputCall": handler(grpc.unary_stream_rpc_method_handler, streaming_output_call,
                                   "StreamingOutputCallRequest", "StreamingOutputCallResponse"),
    "FullDuplexCall": handler(grpc.stream_stream_rpc_method_handler, full_duplex_call,
                              "StreamingOutputCallRequest", "StreamingOutputCallResponse"),
}),))
if server.add_insecure_port("127.0.0.1:" + port) == 0:
    sys.exit("port %s is taken" % port)
server.start()
server.wait_for_termination()
