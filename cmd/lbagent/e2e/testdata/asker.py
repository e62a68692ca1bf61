"""Picks backends of services, calls them itself and reports how the calls went, until its standard input ends.

Usage: asker.py SOCKET PROTOSET METHOD SERVICE...      (Debian: python3-grpcio, python3-protobuf)

Each call is a line: SERVICE ADDRESS CODE PICKED ENDED WHY, the times in nanoseconds; ADDRESS is - if there was none to pick, and WHY what is said of a CODE that is not OK.
"""
import os
import sys
import threading
import time

import grpc
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.wrappers_pb2 import BytesValue

WORKERS = 2  # of each service
BATCH = 8  # calls of one pick
DEADLINE = 3  # of a call to a backend
PATIENCE = 60  # with the agent, which answers at once where the machine lets it

socket, protoset, method, *services = sys.argv[1:]

with open(protoset, "rb") as f:
    lbagent = message_factory.GetMessages(descriptor_pb2.FileDescriptorSet.FromString(f.read()).file)
PickRequest, PickResponse = lbagent["lbagent.v1.PickRequest"], lbagent["lbagent.v1.PickResponse"]
ReportRequest = lbagent["lbagent.v1.ReportRequest"]
HELLO = BytesValue(value=b"hello").SerializeToString()

# gRPC carries bytes here, and takes no part in making messages of them: what goes wrong in that would look like an answer of INTERNAL.
agent = grpc.insecure_channel("unix:" + socket)
carry_pick = agent.unary_unary("/lbagent.v1.LookupService/Pick")
carry_report = agent.unary_unary("/lbagent.v1.LookupService/Report")

# A channel after a failure is a new one, which connects at once: gRPC's own waits, whatever the agent has found out meanwhile.
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]

lock = threading.Lock()
messages = threading.Lock()  # these classes are completed when they are first used, which nobody promises to be safe in several threads
over = threading.Event()

# What a call's status says of the backend.
RESULTS = {"OK": "RESULT_SUCCESS", "UNAVAILABLE": "RESULT_FAILURE", "DEADLINE_EXCEEDED": "RESULT_TIMEOUT"}


def pick(service, count):
    """Returns the picks as pairs of an address and a number of calls."""
    with messages:
        asked = PickRequest(service=service, count=count).SerializeToString()
    answer = carry_pick(asked, timeout=PATIENCE)
    with messages:
        return [(p.address, p.count) for p in PickResponse.FromString(answer).picks]


def report(outcomes):
    with messages:
        said = ReportRequest(outcomes=outcomes).SerializeToString()
    carry_report(said, timeout=PATIENCE)


def call(channels, service, address):
    """Makes one call, and returns its code, what is said of it, and the outcome to report."""
    if address not in channels:
        channels[address] = grpc.insecure_channel("ipv4:" + address, options=OPTIONS)
    echo = channels[address].unary_unary(method)
    begun = time.monotonic()
    code, why = "OK", ""
    try:
        echo(HELLO, timeout=DEADLINE)
    except grpc.RpcError as e:
        code, why = e.code().name, e.details() or ""
        channels.pop(address).close()
    took = int((time.monotonic() - begun) * 1e9)
    outcome = {"service": service, "address": address, "result": RESULTS.get(code, "RESULT_APPLICATION_ERROR")}
    if code != "UNAVAILABLE":
        outcome["latency"] = {"seconds": took // 10**9, "nanos": took % 10**9}
    return code, why, outcome


def tell(*words):
    with lock:
        print(*words, flush=True)


def work(service):
    channels = {}
    while not over.is_set():
        picked = time.time_ns()
        try:
            batch = pick(service, BATCH)
        except grpc.RpcError as e:
            tell(service, "-", e.code().name, picked, time.time_ns(), "pick:", *f"{e.details()} {e.debug_error_string()}".split())
            over.wait(0.05)
            continue
        outcomes = []
        for address, count in batch:
            for _ in range(count):
                code, why, outcome = call(channels, service, address)
                outcomes.append(outcome)
                tell(service, address, code, picked, time.time_ns(), *why.split())
                over.wait(0.02)
        report(outcomes)


def fall(args):
    """Ends the program, and not only the thread, with what went wrong."""
    threading.__excepthook__(args)
    os._exit(1)


threading.excepthook = fall
threads = [threading.Thread(target=work, args=(service,), daemon=True) for service in services for _ in range(WORKERS)]
for t in threads:
    t.start()
sys.stdin.read()
over.set()
for t in threads:
    t.join()
