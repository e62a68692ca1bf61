// Calls a service through both doors of lbagent: it asks for a backend and calls that, and it dials the service's port.
//
//   npm install
//   echo hello | node client.js SERVICE PORT
//
// Each line of standard input is one call by each door.
'use strict';
const fs = require('node:fs');
const path = require('node:path');
const readline = require('node:readline');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const socket = process.env.LBAGENT_SOCKET || '/run/lbagent/lbagent.sock';
const askTimeout = 500; // ms; an agent that is there answers within a millisecond
const callTimeout = 2000;
const batch = 20; // calls for one question

// gRPC's own back-off grows to 2 minutes. Behind this channel is an agent that is back within a second, or a backend that it has just recommended.
const channelOptions = {'grpc.initial_reconnect_backoff_ms': 100, 'grpc.max_reconnect_backoff_ms': 1000};
const plain = grpc.credentials.createInsecure();

const includeDirs = [path.join(__dirname, '..')];
const load = (file) => grpc.loadPackageDefinition(loader.loadSync(file, {includeDirs, longs: Number, enums: String, defaults: true}));
const {LookupService} = load('lbagent/v1/lookup.proto').lbagent.v1;
const {Echo} = load('echo.proto').lbdemo;

// What the end of a call says of the backend; all else is an answer, and the backend is well.
const results = {
  [grpc.status.UNAVAILABLE]: 'RESULT_FAILURE',
  [grpc.status.DEADLINE_EXCEEDED]: 'RESULT_TIMEOUT',
  [grpc.status.RESOURCE_EXHAUSTED]: 'RESULT_OVERLOADED',
  [grpc.status.UNKNOWN]: 'RESULT_APPLICATION_ERROR',
  [grpc.status.INTERNAL]: 'RESULT_APPLICATION_ERROR',
  [grpc.status.DATA_LOSS]: 'RESULT_APPLICATION_ERROR',
};

/** call makes a unary call. */
function call(client, method, request, timeout, waitForReady = false) {
  return new Promise((resolve, reject) => {
    client[method](request, new grpc.Metadata({waitForReady}), {deadline: Date.now() + timeout}, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

/** Backends are those of one service, as the agent recommends them; while it is away, those of its last answer, else of the file that it has left. */
class Backends {
  constructor(service) {
    this.service = service;
    this.lookup = new LookupService(`unix:${socket}`, plain, channelOptions);
    this.picks = []; // to be spent in this order, until
    this.until = 0;
    this.clients = new Map(); // by address, of the last answer
  }

  /** pick resolves to an address for one call. Most calls spend what is left of the last answer. */
  async pick(exclude = []) {
    if (this.picks.length === 0 || Date.now() >= this.until || exclude.length > 0) {
      try {
        await this.ask(exclude);
      } catch (error) {
        if (error.metadata?.get('grpc-status-details-bin').length > 0) throw error; // the agent is there, and says why there is no backend
        this.keep(exclude);
      }
    }
    return this.picks.shift();
  }

  async ask(exclude) {
    const answer = await call(this.lookup, 'pick', {service: this.service, count: batch, exclude}, askTimeout);
    this.picks = answer.picks.flatMap(({address, count}) => Array(count).fill(address));
    this.until = Date.now() + answer.validFor.seconds * 1000 + answer.validFor.nanos / 1e6;
    for (const [address, client] of this.clients) {
      if (!this.picks.includes(address)) {
        client.close();
        this.clients.delete(address);
      }
    }
  }

  /** keep goes on without the agent: with what is known, for a second; then it is asked again. */
  keep(exclude) {
    const known = this.clients.size > 0 ? [...this.clients.keys()] : leftByAgent(this.service);
    const others = known.filter((address) => !exclude.includes(address));
    this.picks = others.length > 0 ? others : known;
    this.until = Date.now() + 1000;
  }

  client(address) {
    if (!this.clients.has(address)) this.clients.set(address, new Echo(address, plain, channelOptions));
    return this.clients.get(address);
  }

  /** report tells how a call went, so that others profit; nobody waits for it. One with many calls a second collects up to 1000 outcomes for one report. */
  report(address, result, took) {
    const latency = result === 'RESULT_SUCCESS' ? {seconds: Math.floor(took / 1000), nanos: Math.floor((took % 1000) * 1e6)} : undefined;
    call(this.lookup, 'report', {outcomes: [{service: this.service, address, result, latency}]}, askTimeout).catch(() => {});
  }
}

/** leftByAgent reads the list that stays when the agent goes: a line `host:port weight` per backend, best first. */
function leftByAgent(service) {
  const text = fs.readFileSync(path.join(path.dirname(socket), 'lists', service), 'ascii');
  return text.split('\n').filter(Boolean).map((line) => line.split(' ')[0]);
}

/** say makes a call that may be repeated: if the backend fails, once more on another one. */
async function say(backends, words) {
  const failed = [];
  for (;;) {
    const address = await backends.pick(failed);
    const began = performance.now();
    try {
      const {value} = await call(backends.client(address), 'say', {value: words}, callTimeout);
      backends.report(address, 'RESULT_SUCCESS', performance.now() - began);
      return `${address} ${value}`;
    } catch (error) {
      backends.report(address, results[error.code] ?? 'RESULT_SUCCESS', performance.now() - began);
      failed.push(address);
      if (error.code !== grpc.status.UNAVAILABLE || failed.length > 1) throw error;
    }
  }
}

async function main(service, port) {
  const backends = new Backends(service);
  // One client is enough: the agent balances each call. A call that comes while the agent restarts waits for it, as long as its deadline allows.
  const dialed = new Echo(`127.0.0.1:${port}`, plain, channelOptions);
  for await (const words of readline.createInterface({input: process.stdin})) {
    await say(backends, words).then((text) => console.log('asked', text), (error) => console.log('asked failed:', error.message));
    await call(dialed, 'say', {value: words}, callTimeout, true).then(({value}) => console.log('dialed', value), (error) => console.log('dialed failed:', error.message));
  }
}

main(...process.argv.slice(2)).then(() => process.exit(0));
