#!/usr/bin/python3
"""Calls a service through both doors of lbagent: it asks for a backend and calls that, and it dials the service's port.

Debian: python3-grpcio python3-protobuf protobuf-compiler protobuf-compiler-grpc. In the folder of the examples:

    mkdir -p /tmp/stubs
    protoc -I . --python_out=/tmp/stubs --grpc_out=/tmp/stubs --plugin=protoc-gen-grpc=/usr/bin/grpc_python_plugin lbagent/v1/lookup.proto echo.proto
    echo hello | PYTHONPATH=/tmp/stubs python3 python/client.py SERVICE PORT

Each line of standard input is one call by each door.
"""
import collections
import os
import sys
import time

import grpc
from google.protobuf.wrappers_pb2 import StringValue

import echo_pb2_grpc
from lbagent.v1 import lookup_pb2, lookup_pb2_grpc

SOCKET = os.environ.get("LBAGENT_SOCKET", "/run/lbagent/lbagent.sock")
ASK_TIMEOUT = 0.5  # seconds; an agent that is there answers within a millisecond
CALL_TIMEOUT = 2
BATCH = 20  # calls for one question

# gRPC's own back-off grows to 2 minutes. Behind this channel is an agent that is back within a second, or a backend that it has just recommended.
CHANNEL = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # how long one connect may take
    ("grpc.max_reconnect_backoff_ms", 1000),
]

# What the end of a call says of the backend; all else is an answer, and the backend is well.
RESULTS = {
    grpc.StatusCode.UNAVAILABLE: lookup_pb2.RESULT_FAILURE,
    grpc.StatusCode.DEADLINE_EXCEEDED: lookup_pb2.RESULT_TIMEOUT,
    grpc.StatusCode.RESOURCE_EXHAUSTED: lookup_pb2.RESULT_OVERLOADED,
    grpc.StatusCode.UNKNOWN: lookup_pb2.RESULT_APPLICATION_ERROR,
    grpc.StatusCode.INTERNAL: lookup_pb2.RESULT_APPLICATION_ERROR,
    grpc.StatusCode.DATA_LOSS: lookup_pb2.RESULT_APPLICATION_ERROR,
}


class Backends:
    """The backends of one service, as the agent recommends them; while it is away, those of its last answer, else of the file that it has left."""

    def __init__(self, service):
        self.service = service
        self.lookup = lookup_pb2_grpc.LookupServiceStub(grpc.insecure_channel("unix:" + SOCKET, CHANNEL))
        self.picks = collections.deque()  # to be spent in this order, until
        self.until = 0.0
        self.channels = {}  # by address, of the last answer

    def pick(self, exclude=()):
        """Returns an address for one call. Most calls spend what is left of the last answer."""
        if not self.picks or time.monotonic() >= self.until or exclude:
            try:
                self.ask(exclude)
            except grpc.RpcError as e:
                if has_details(e):
                    raise  # the agent is there, and says why there is no backend
                self.keep(exclude)
        return self.picks.popleft()

    def ask(self, exclude):
        request = lookup_pb2.PickRequest(service=self.service, count=BATCH, exclude=exclude)
        answer = self.lookup.Pick(request, timeout=ASK_TIMEOUT)
        self.picks = collections.deque(p.address for p in answer.picks for _ in range(p.count))
        self.until = time.monotonic() + answer.valid_for.ToTimedelta().total_seconds()
        for address in self.channels.keys() - set(self.picks):
            self.channels.pop(address).close()

    def keep(self, exclude):
        """Goes on without the agent: with what is known, for a second; then it is asked again."""
        known = list(self.channels) or left_by_agent(self.service)
        self.picks = collections.deque([a for a in known if a not in exclude] or known)
        self.until = time.monotonic() + 1

    def channel(self, address):
        if address not in self.channels:
            self.channels[address] = grpc.insecure_channel("ipv4:" + address if address[0] != "[" else "ipv6:" + address, CHANNEL)
        return self.channels[address]

    def report(self, address, result, latency):
        """Tells how a call went, so that others profit. One with many calls a second collects up to 1000 outcomes for one report."""
        outcome = lookup_pb2.Outcome(service=self.service, address=address, result=result)
        if result == lookup_pb2.RESULT_SUCCESS:
            outcome.latency.FromMicroseconds(int(latency * 1e6))
        try:
            self.lookup.Report(lookup_pb2.ReportRequest(outcomes=[outcome]), timeout=ASK_TIMEOUT)
        except grpc.RpcError:
            pass  # nothing hangs on it


def has_details(error):
    return any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())


def left_by_agent(service):
    """Reads the list that stays when the agent goes: a line `host:port weight` per backend, best first."""
    with open(os.path.join(os.path.dirname(SOCKET), "lists", service), encoding="ascii") as f:
        return [line.split()[0] for line in f if line.strip()]


def say(backends, words):
    """Makes a call that may be repeated: if the backend fails, once more on another one."""
    failed = []
    while True:
        address = backends.pick(failed)
        began = time.monotonic()
        try:
            answer = echo_pb2_grpc.EchoStub(backends.channel(address)).Say(StringValue(value=words), timeout=CALL_TIMEOUT)
        except grpc.RpcError as e:
            backends.report(address, RESULTS.get(e.code(), lookup_pb2.RESULT_SUCCESS), 0)
            failed.append(address)
            if e.code() != grpc.StatusCode.UNAVAILABLE or len(failed) > 1:
                raise
        else:
            backends.report(address, lookup_pb2.RESULT_SUCCESS, time.monotonic() - began)
            return address, answer.value


def main(service, port):
    backends = Backends(service)
    # One channel is enough: the agent balances each call. A call that comes while the agent restarts waits for it, as long as its deadline allows.
    dialed = echo_pb2_grpc.EchoStub(grpc.insecure_channel("127.0.0.1:" + port, CHANNEL))
    for words in map(str.strip, sys.stdin):
        try:
            print("asked", *say(backends, words), flush=True)
        except grpc.RpcError as e:
            print("asked failed:", e.code().name, e.details(), flush=True)
        except OSError as e:
            print("asked failed:", e, flush=True)
        try:
            print("dialed", dialed.Say(StringValue(value=words), timeout=CALL_TIMEOUT, wait_for_ready=True).value, flush=True)
        except grpc.RpcError as e:
            print("dialed failed:", e.code().name, e.details(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
