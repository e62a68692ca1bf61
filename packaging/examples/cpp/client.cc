// Calls a service through both doors of lbagent: it asks for a backend and calls that, and it dials the service's port.
//
//   make
//   echo hello | build/client SERVICE PORT
//
// Each line of standard input is one call by each door.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "echo.grpc.pb.h"
#include "lbagent/v1/lookup.grpc.pb.h"

namespace {

using Clock = std::chrono::steady_clock;
using google::protobuf::StringValue;
using lbagent::v1::LookupService;
using lbdemo::Echo;
using namespace std::chrono_literals;

constexpr auto kAskTimeout = 500ms;  // an agent that is there answers within a millisecond
constexpr auto kCallTimeout = 2s;
constexpr int kBatch = 20;  // calls for one question

// gRPC's own back-off grows to 2 minutes. Behind this channel is an agent that is back within a second, or a backend that it has just recommended.
std::shared_ptr<grpc::Channel> Connect(const std::string& target) {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);  // how long one connect may take
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), args);
}

std::unique_ptr<grpc::ClientContext> Within(std::chrono::milliseconds timeout) {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + timeout);
  return context;
}

// What the end of a call says of the backend; all else is an answer, and the backend is well.
lbagent::v1::Result ResultOf(const grpc::Status& status) {
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      return lbagent::v1::RESULT_FAILURE;
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return lbagent::v1::RESULT_TIMEOUT;
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return lbagent::v1::RESULT_OVERLOADED;
    case grpc::StatusCode::UNKNOWN:
    case grpc::StatusCode::INTERNAL:
    case grpc::StatusCode::DATA_LOSS:
      return lbagent::v1::RESULT_APPLICATION_ERROR;
    default:
      return lbagent::v1::RESULT_SUCCESS;
  }
}

// Backends of one service, as the agent recommends them; while it is away, those of its last answer, else of the file that it has left.
class Backends {
 public:
  Backends(std::string service, const std::string& socket)
      : service_(std::move(service)), lists_(socket.substr(0, socket.rfind('/')) + "/lists/"), lookup_(LookupService::NewStub(Connect("unix:" + socket))) {}

  // Pick returns an address for one call. Most calls spend what is left of the last answer.
  std::string Pick(const std::vector<std::string>& exclude) {
    if (picks_.empty() || Clock::now() >= until_ || !exclude.empty()) {
      const grpc::Status status = Ask(exclude);
      // With details, the agent is there, and says why there is no backend.
      if (!status.ok() && !status.error_details().empty()) throw std::runtime_error(status.error_message());
      if (!status.ok()) Keep(exclude);
    }
    if (picks_.empty()) throw std::runtime_error("no agent answers, and no backend of " + service_ + " is known");
    std::string address = picks_.front();
    picks_.pop_front();
    return address;
  }

  Echo::Stub& Stub(const std::string& address) {
    auto& stub = stubs_[address];
    if (!stub) stub = Echo::NewStub(Connect((address[0] == '[' ? "ipv6:" : "ipv4:") + address));
    return *stub;
  }

  // Report tells how a call went, so that others profit; nothing hangs on it. One with many calls a second collects up to 1000 outcomes for one report.
  void Report(const std::string& address, lbagent::v1::Result result, Clock::duration took) {
    lbagent::v1::ReportRequest request;
    auto* outcome = request.add_outcomes();
    outcome->set_service(service_);
    outcome->set_address(address);
    outcome->set_result(result);
    if (result == lbagent::v1::RESULT_SUCCESS) {
      const auto nanos = std::chrono::nanoseconds(took).count();
      outcome->mutable_latency()->set_seconds(nanos / 1'000'000'000);
      outcome->mutable_latency()->set_nanos(nanos % 1'000'000'000);
    }
    lbagent::v1::ReportResponse response;
    lookup_->Report(Within(kAskTimeout).get(), request, &response);
  }

 private:
  grpc::Status Ask(const std::vector<std::string>& exclude) {
    lbagent::v1::PickRequest request;
    request.set_service(service_);
    request.set_count(kBatch);
    for (const auto& address : exclude) request.add_exclude(address);
    lbagent::v1::PickResponse answer;
    const grpc::Status status = lookup_->Pick(Within(kAskTimeout).get(), request, &answer);
    if (!status.ok()) return status;
    picks_.clear();
    for (const auto& pick : answer.picks()) picks_.insert(picks_.end(), pick.count(), pick.address());
    until_ = Clock::now() + std::chrono::seconds(answer.valid_for().seconds()) + std::chrono::nanoseconds(answer.valid_for().nanos());
    for (auto it = stubs_.begin(); it != stubs_.end();) {
      it = std::find(picks_.begin(), picks_.end(), it->first) == picks_.end() ? stubs_.erase(it) : std::next(it);
    }
    return status;
  }

  // Keep goes on without the agent: with what is known, for a second; then it is asked again.
  void Keep(const std::vector<std::string>& exclude) {
    std::vector<std::string> known;
    for (const auto& [address, stub] : stubs_) known.push_back(address);
    if (known.empty()) known = LeftByAgent();
    picks_.clear();
    std::copy_if(known.begin(), known.end(), std::back_inserter(picks_),
                 [&](const auto& address) { return std::find(exclude.begin(), exclude.end(), address) == exclude.end(); });
    if (picks_.empty()) picks_.assign(known.begin(), known.end());
    until_ = Clock::now() + 1s;
  }

  // LeftByAgent reads the list that stays when the agent goes: a line `host:port weight` per backend, best first.
  std::vector<std::string> LeftByAgent() const {
    std::ifstream file(lists_ + service_);
    std::vector<std::string> known;
    std::string line, address;
    while (std::getline(file, line)) {
      if (std::istringstream(line) >> address) known.push_back(address);
    }
    return known;
  }

  const std::string service_, lists_;
  const std::unique_ptr<LookupService::Stub> lookup_;
  std::deque<std::string> picks_;  // to be spent in this order, until
  Clock::time_point until_;
  std::map<std::string, std::unique_ptr<Echo::Stub>> stubs_;  // by address, of the last answer
};

// Say makes a call that may be repeated: if the backend fails, once more on another one.
std::string Say(Backends& backends, const StringValue& words) {
  std::vector<std::string> failed;
  for (;;) {
    const std::string address = backends.Pick(failed);
    const auto began = Clock::now();
    StringValue answer;
    const grpc::Status status = backends.Stub(address).Say(Within(kCallTimeout).get(), words, &answer);
    backends.Report(address, ResultOf(status), Clock::now() - began);
    if (status.ok()) return address + " " + answer.value();
    failed.push_back(address);
    if (status.error_code() != grpc::StatusCode::UNAVAILABLE || failed.size() > 1) throw std::runtime_error(status.error_message());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "Usage: client SERVICE PORT\n";
    return 2;
  }
  const char* socket = std::getenv("LBAGENT_SOCKET");
  Backends backends(argv[1], socket ? socket : "/run/lbagent/lbagent.sock");
  // One channel is enough: the agent balances each call. A call that comes while the agent restarts waits for it, as long as its deadline allows.
  const auto dialed = Echo::NewStub(Connect(std::string("127.0.0.1:") + argv[2]));
  StringValue words, answer;
  while (std::getline(std::cin, *words.mutable_value())) {
    try {
      std::cout << "asked " << Say(backends, words) << std::endl;
    } catch (const std::runtime_error& e) {
      std::cout << "asked failed: " << e.what() << std::endl;
    }
    const auto context = Within(kCallTimeout);
    context->set_wait_for_ready(true);
    if (const grpc::Status status = dialed->Say(context.get(), words, &answer); status.ok()) {
      std::cout << "dialed " << answer.value() << std::endl;
    } else {
      std::cout << "dialed failed: " << status.error_message() << std::endl;
    }
  }
}
