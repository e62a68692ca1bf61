// The conformance client in JavaScript: the cases of gRPC's interop tests, and more, on @grpc/grpc-js.
//
// Usage: node client.js PROTOSET ADDRESS CASE...
// A line for each case: "ok CASE", or "not ok CASE: why". PROTOSET has the descriptors of grpc.testing. SIZES=small makes every message small, for recordings.
'use strict';
const assert = require('node:assert');
const fs = require('node:fs');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [protoset, address, ...wanted] = process.argv.slice(2);
const scale = process.env.SIZES === 'small' ? 1000 : 1;
const patience = 20_000; // ms

const options = {keepCase: true, longs: Number, enums: String, defaults: true};
const definition = loader.loadFileDescriptorSetFromBuffer(fs.readFileSync(protoset), options);
const testing = grpc.loadPackageDefinition(definition).grpc.testing;
const {status} = grpc;

const size = (n) => Math.ceil(n / scale);
const zeros = (n) => ({type: 'COMPRESSABLE', body: Buffer.alloc(size(n))});
const late = () => ({deadline: Date.now() + patience});
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** unary makes a call and resolves to {error, response, header, trailer}; it never rejects. */
function unary(client, method, request, metadata = new grpc.Metadata(), callOptions = late()) {
  return new Promise((resolve) => {
    const seen = {};
    const call = client[method](request, metadata, callOptions, (error, response) => Object.assign(seen, {error, response}));
    call.on('metadata', (header) => { seen.header = header; });
    call.on('status', (end) => { seen.trailer = end.metadata; resolve(seen); });
  });
}

/** duplex opens a bidirectional stream with receive(), which resolves to a message or, at the end, null, and ended, the final status. */
function duplex(client, method, metadata = new grpc.Metadata(), callOptions = late()) {
  const call = client[method](metadata, callOptions);
  const messages = [];
  const waiting = [];
  const push = (m) => (waiting.length > 0 ? waiting.shift()(m) : messages.push(m));
  call.on('data', push);
  call.on('end', () => push(null));
  call.on('error', () => {}); // the status tells it too
  const ended = new Promise((resolve) => call.on('status', resolve));
  ended.then(() => push(null));
  return {call, ended, receive: () => (messages.length > 0 ? Promise.resolve(messages.shift()) : new Promise((r) => waiting.push(r)))};
}

const ask = (...sizes) => ({response_type: 'COMPRESSABLE', response_parameters: sizes.map((n) => ({size: size(n)}))});

function succeeded({error}) {
  assert.ok(!error, String(error));
}

function failed({error}, code, details) {
  assert.ok(error, 'the call succeeded');
  assert.strictEqual(error.code, code, String(error));
  if (details !== undefined) assert.strictEqual(error.details, details);
}

async function largeUnary(client, request = 271828, response = 314159, more = {}) {
  const got = await unary(client, 'UnaryCall', {response_type: 'COMPRESSABLE', response_size: size(response), payload: zeros(request), ...more});
  succeeded(got);
  assert.ok(got.response.payload.body.equals(Buffer.alloc(size(response))), 'the payload differs');
  return got;
}

/** pingPong sends messages one by one, each after the answer to the one before. */
async function pingPong(stream, sizes) {
  for (const [request, response] of sizes) {
    stream.call.write({...ask(response), payload: zeros(request)});
    const m = await stream.receive();
    assert.ok(m, 'the stream ended early');
    assert.strictEqual(m.payload.body.length, size(response));
  }
}

const interopSizes = [[27182, 31415], [8, 9], [1828, 2653], [45904, 58979]];

/** closed sends the half-close and wants the end of the stream with status OK. */
async function closed(stream) {
  stream.call.end();
  assert.strictEqual(await stream.receive(), null);
  assert.strictEqual((await stream.ended).code, status.OK);
}

/** withClient runs f with a client of its own, on a connection of its own. */
async function withClient(channelOptions, f) {
  const client = new testing.TestService(address, grpc.credentials.createInsecure(), {'grpc.use_local_subchannel_pool': 1, ...channelOptions});
  try {
    return await f(client);
  } finally {
    client.close();
  }
}

const cases = {
  async empty_unary(client) {
    succeeded(await unary(client, 'EmptyCall', {}));
  },
  large_unary: (client) => largeUnary(client),
  three_megabytes: (client) => largeUnary(client, 3 << 20, 3 << 20),

  async client_streaming(client) {
    const got = await new Promise((resolve) => {
      const call = client.StreamingInputCall(new grpc.Metadata(), late(), (error, response) => resolve({error, response}));
      for (const n of [27182, 8, 1828, 45904]) call.write({payload: zeros(n)});
      call.end();
    });
    succeeded(got);
    assert.strictEqual(got.response.aggregated_payload_size, [27182, 8, 1828, 45904].map(size).reduce((a, b) => a + b));
  },

  async server_streaming(client) {
    const call = client.StreamingOutputCall(ask(31415, 9, 2653, 58979), new grpc.Metadata(), late());
    const sizes = [];
    for await (const m of call) sizes.push(m.payload.body.length);
    assert.deepStrictEqual(sizes, [31415, 9, 2653, 58979].map(size));
  },

  async ping_pong(client) {
    const stream = duplex(client, 'FullDuplexCall');
    await pingPong(stream, interopSizes);
    await closed(stream);
  },

  async empty_stream(client) {
    await closed(duplex(client, 'FullDuplexCall'));
  },

  async custom_metadata(client) {
    const all = Buffer.from(Array.from({length: 256}, (_, i) => i));
    const metadata = new grpc.Metadata();
    metadata.set('x-grpc-test-echo-initial', 'test_initial_metadata_value');
    metadata.set('x-grpc-test-echo-trailing-bin', all);
    const check = (header, trailer) => {
      assert.deepStrictEqual(header.get('x-grpc-test-echo-initial'), ['test_initial_metadata_value']);
      assert.deepStrictEqual(trailer.get('x-grpc-test-echo-trailing-bin'), [all]);
    };
    const got = await unary(client, 'UnaryCall', {response_size: size(314159), payload: zeros(271828)}, metadata);
    succeeded(got);
    check(got.header, got.trailer);

    const stream = duplex(client, 'FullDuplexCall', metadata);
    let header;
    stream.call.on('metadata', (m) => { header = m; });
    await pingPong(stream, [[271828, 314159]]);
    await closed(stream);
    check(header, (await stream.ended).metadata);
  },

  // 7 KiB of metadata need CONTINUATION or a large frame; HPACK's table doesn't hold them.
  async much_metadata(client) {
    const metadata = new grpc.Metadata();
    const value = 'v'.repeat(3500);
    metadata.set('x-grpc-test-echo-initial', value);
    metadata.set('x-other', value);
    for (let i = 0; i < 3; i++) {
      const got = await unary(client, 'UnaryCall', {response_size: 1}, metadata);
      succeeded(got);
      assert.deepStrictEqual(got.header.get('x-grpc-test-echo-initial'), [value]);
    }
  },

  async status_code_and_message(client) {
    const want = {code: 2, message: 'test status message'};
    failed(await unary(client, 'UnaryCall', {response_status: want}), want.code, want.message);
    const stream = duplex(client, 'FullDuplexCall');
    stream.call.write({response_status: want});
    stream.call.end();
    const end = await stream.ended;
    assert.strictEqual(end.code, want.code);
    assert.strictEqual(end.details, want.message);
  },

  async every_status_code(client) {
    for (let code = 1; code <= 16; code++) {
      failed(await unary(client, 'UnaryCall', {response_status: {code, message: `code ${code}`}}), code, `code ${code}`);
    }
  },

  async special_status_message(client) {
    const message = '\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n 100 % %41';
    failed(await unary(client, 'UnaryCall', {response_status: {code: 2, message}}), 2, message);
  },

  async unimplemented_method(client) {
    failed(await unary(client, 'UnimplementedCall', {}), status.UNIMPLEMENTED);
  },

  async unimplemented_service() {
    const client = new testing.UnimplementedService(address, grpc.credentials.createInsecure());
    try {
      failed(await unary(client, 'UnimplementedCall', {}), status.UNIMPLEMENTED);
    } finally {
      client.close();
    }
  },

  async deadline(client) {
    const began = Date.now();
    const stream = duplex(client, 'FullDuplexCall', new grpc.Metadata(), {deadline: began + 300});
    stream.call.write({response_parameters: [{size: 1, interval_us: 5_000_000}]});
    const end = await stream.ended;
    assert.strictEqual(end.code, status.DEADLINE_EXCEEDED);
    assert.ok(Date.now() - began < 3000, 'it came late');
    succeeded(await unary(client, 'EmptyCall', {})); // the connection is as good as before
  },

  async cancel_after_begin(client) {
    const got = await new Promise((resolve) => {
      const call = client.StreamingInputCall(new grpc.Metadata(), late(), (error, response) => resolve({error, response}));
      call.cancel();
    });
    failed(got, status.CANCELLED);
    succeeded(await unary(client, 'EmptyCall', {}));
  },

  async cancel_after_first_response(client) {
    const stream = duplex(client, 'FullDuplexCall');
    await pingPong(stream, interopSizes.slice(0, 1));
    stream.call.cancel();
    assert.strictEqual((await stream.ended).code, status.CANCELLED);
    succeeded(await unary(client, 'EmptyCall', {}));
  },

  gzip: () => withClient({'grpc.default_compression_algorithm': 2}, async (client) => {
    await largeUnary(client, 271828, 314159, {response_compressed: {value: true}, expect_compressed: {value: true}});
    const stream = duplex(client, 'FullDuplexCall');
    await pingPong(stream, interopSizes);
    await closed(stream);
  }),

  // Pings every second, each to be answered within two; a stream that was silent meanwhile goes on.
  keepalive: () => withClient({'grpc.keepalive_time_ms': 1000, 'grpc.keepalive_timeout_ms': 2000, 'grpc.keepalive_permit_without_calls': 1}, async (client) => {
    const stream = duplex(client, 'FullDuplexCall');
    await pingPong(stream, [[1, 1]]);
    await sleep(4000);
    await pingPong(stream, [[1, 1]]);
    await closed(stream);
  }),

  // 400 calls, 50 at a time, over one connection.
  async parallel_unary(client) {
    let left = 400 / Math.sqrt(scale);
    await Promise.all(Array.from({length: 50 / Math.sqrt(scale)}, async () => {
      while (left-- > 0) await largeUnary(client, left * 50, left * 40);
    }));
  },

  // 100 streams at once, over one connection, with messages of many sizes.
  async parallel_streams(client) {
    await Promise.all(Array.from({length: 100 / Math.sqrt(scale)}, async (_, i) => {
      const stream = duplex(client, 'FullDuplexCall');
      for (let n = 0; n < 20; n++) await pingPong(stream, [[(i * 613 + n * 97) % 20000, (i * 97 + n * 613) % 20000]]);
      await closed(stream);
    }));
  },

  // Each server has its turn: 100 calls, and nobody has fewer than a quarter.
  async spread(client) {
    const seen = new Map();
    for (let i = 0; i < 100; i++) {
      const got = await unary(client, 'UnaryCall', {fill_server_id: true});
      succeeded(got);
      seen.set(got.response.server_id, (seen.get(got.response.server_id) ?? 0) + 1);
    }
    assert.ok(seen.size > 1 && [...seen.values()].every((n) => n >= 25), JSON.stringify([...seen]));
  },
};

async function main() {
  let bad = 0;
  for (const name of wanted) {
    try {
      assert.ok(cases[name], 'there is no such case');
      await withClient({}, cases[name]);
      console.log(`ok ${name}`);
    } catch (e) {
      bad++;
      console.log(`not ok ${name}: ${String(e.message ?? e).replaceAll('\n', ' | ')}`);
    }
  }
  process.exit(bad > 0 ? 1 : 0);
}

main();
