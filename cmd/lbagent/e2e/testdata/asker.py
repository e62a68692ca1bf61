"""Picks backends of services, calls them itself and reports how the calls went, until its standard input ends.

Usage: asker.py SOCKET PROTOSET METHOD SERVICE...      (Debian: python3-grpcio, python3-protobuf)

Each call is a line: SERVICE ADDRESS CODE PICKED ENDED, the times in nanoseconds; ADDRESS is - if there was none to pick.
"""
import sys
import threading
import time

import grpc
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.wrappers_pb2 import BytesValue

WORKERS = 2  # of each service
BATCH = 8  # calls of one pick
DEADLINE = 3

socket, protoset, method, *services = sys.argv[1:]

with open(protoset, "rb") as f:
    lbagent = message_factory.GetMessages(descriptor_pb2.FileDescriptorSet.FromString(f.read()).file)
PickRequest, ReportRequest = lbagent["lbagent.v1.PickRequest"], lbagent["lbagent.v1.ReportRequest"]

agent = grpc.insecure_channel("unix:" + socket)
pick = agent.unary_unary("/lbagent.v1.LookupService/Pick", request_serializer=PickRequest.SerializeToString,
                         response_deserializer=lbagent["lbagent.v1.PickResponse"].FromString)
report = agent.unary_unary("/lbagent.v1.LookupService/Report", request_serializer=ReportRequest.SerializeToString,
                           response_deserializer=lbagent["lbagent.v1.ReportResponse"].FromString)

# A channel after a failure is a new one, which connects at once: gRPC's own waits, whatever the agent has found out meanwhile.
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]

lock = threading.Lock()
over = threading.Event()

# What a call's status says of the backend.
RESULTS = {"OK": "RESULT_SUCCESS", "UNAVAILABLE": "RESULT_FAILURE", "DEADLINE_EXCEEDED": "RESULT_TIMEOUT"}


def call(channels, service, address):
    """Makes one call, and returns its code and the outcome to report."""
    if address not in channels:
        channels[address] = grpc.insecure_channel("ipv4:" + address, options=OPTIONS)
    echo = channels[address].unary_unary(method, request_serializer=BytesValue.SerializeToString, response_deserializer=BytesValue.FromString)
    begun = time.monotonic()
    code = "OK"
    try:
        echo(BytesValue(value=b"hello"), timeout=DEADLINE)
    except grpc.RpcError as e:
        code = e.code().name
        channels.pop(address).close()
    took = int((time.monotonic() - begun) * 1e9)
    outcome = {"service": service, "address": address, "result": RESULTS.get(code, "RESULT_APPLICATION_ERROR")}
    if code != "UNAVAILABLE":
        outcome["latency"] = {"seconds": took // 10**9, "nanos": took % 10**9}
    return code, outcome


def tell(*words):
    with lock:
        print(*words, flush=True)


def work(service):
    channels = {}
    while not over.is_set():
        picked = time.time_ns()
        try:
            answer = pick(PickRequest(service=service, count=BATCH), timeout=DEADLINE)
        except grpc.RpcError as e:
            tell(service, "-", e.code().name, picked, time.time_ns())
            print("pick", service, e.code().name, e.details(), file=sys.stderr, flush=True)
            over.wait(0.05)
            continue
        outcomes = []
        for p in answer.picks:
            for _ in range(p.count):
                code, outcome = call(channels, service, p.address)
                outcomes.append(outcome)
                tell(service, p.address, code, picked, time.time_ns())
                over.wait(0.02)
        report(ReportRequest(outcomes=outcomes), timeout=DEADLINE)


# Protobuf in pure Python completes its classes when they are first used, and not safely by several threads.
first = pick(PickRequest(service=services[0]), timeout=DEADLINE)
report(ReportRequest(outcomes=[call({}, services[0], first.picks[0].address)[1]]), timeout=DEADLINE)

threads = [threading.Thread(target=work, args=(service,), daemon=True) for service in services for _ in range(WORKERS)]
for t in threads:
    t.start()
sys.stdin.read()
over.set()
for t in threads:
    t.join()
