"""Asks lbagent for a backend, then calls the service through lbagent's port.

Usage: client.py SOCKET PROTOSET SERVICE PORT      (Debian: python3-grpcio, python3-protobuf)
"""
import sys

import grpc
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.wrappers_pb2 import StringValue

socket, protoset, service, port = sys.argv[1:]

# The agent's messages as grpcurl wrote them down; an import of lookup_pb2 if you run protoc.
with open(protoset, "rb") as f:
    lbagent = message_factory.GetMessages(descriptor_pb2.FileDescriptorSet.FromString(f.read()).file)

# Ask: where should the next call go?
with grpc.insecure_channel("unix:" + socket) as agent:
    pick = agent.unary_unary(
        "/lbagent.v1.LookupService/Pick",
        request_serializer=lbagent["lbagent.v1.PickRequest"].SerializeToString,
        response_deserializer=lbagent["lbagent.v1.PickResponse"].FromString)
    answer = pick(lbagent["lbagent.v1.PickRequest"](service=service), timeout=2)
    print("picked", answer.picks[0].address, "from", answer.provenance.source)

# Dial: one channel to the service's port; each call goes to a good backend.
with grpc.insecure_channel("127.0.0.1:" + port) as channel:
    say = channel.unary_unary(
        "/lbdemo.Echo/Say",
        request_serializer=StringValue.SerializeToString,
        response_deserializer=StringValue.FromString)
    for i in range(5):
        print(say(StringValue(value="hello %d" % i), timeout=2).value)
