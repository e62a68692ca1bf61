// A server of grpc.testing.TestService in JavaScript, on @grpc/grpc-js.
//
// Usage: node server.js PROTOSET PORT NAME
'use strict';
const fs = require('node:fs');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [protoset, port, name] = process.argv.slice(2);
const options = {keepCase: true, longs: Number, enums: String, defaults: true};
const definition = loader.loadFileDescriptorSetFromBuffer(fs.readFileSync(protoset), options);
const {TestService} = grpc.loadPackageDefinition(definition).grpc.testing;

const payload = (size) => ({type: 'COMPRESSABLE', body: Buffer.alloc(size)});
const sleep = (us) => new Promise((resolve) => setTimeout(resolve, us / 1000));

/** echo sends the initial metadata back, if that is asked for, and returns the trailing metadata. */
function echo(call) {
  const initial = call.metadata.get('x-grpc-test-echo-initial');
  if (initial.length > 0) {
    const header = new grpc.Metadata();
    header.set('x-grpc-test-echo-initial', initial[0]);
    call.sendMetadata(header);
  }
  const trailer = new grpc.Metadata();
  const trailing = call.metadata.get('x-grpc-test-echo-trailing-bin');
  if (trailing.length > 0) trailer.set('x-grpc-test-echo-trailing-bin', trailing[0]);
  return trailer;
}

const failure = (s) => (s && s.code > 0 ? {code: s.code, details: s.message} : null);

async function answer(call, request) {
  for (const p of request.response_parameters) {
    if (p.interval_us > 0) await sleep(p.interval_us);
    if (call.cancelled) return;
    if (!call.write({payload: payload(p.size)})) {
      await new Promise((resolve) => { call.once('drain', resolve); call.once('cancelled', resolve); });
    }
  }
}

const server = new grpc.Server();
server.addService(TestService.service, {
  EmptyCall: (call, done) => done(null, {}, echo(call)),
  UnaryCall(call, done) {
    const trailer = echo(call);
    const {response_status: wanted, response_size: size, fill_server_id: fill} = call.request;
    done(failure(wanted), {payload: payload(size), server_id: fill ? name : ''}, trailer);
  },
  StreamingInputCall(call, done) {
    let sum = 0;
    call.on('data', (m) => { sum += m.payload.body.length; });
    call.on('end', () => done(null, {aggregated_payload_size: sum}));
  },
  async StreamingOutputCall(call) {
    await answer(call, call.request);
    call.end();
  },
  FullDuplexCall(call) {
    const trailer = echo(call);
    let last = Promise.resolve();
    let over = false;
    call.on('data', (request) => {
      last = last.then(() => {
        if (over) return undefined;
        const error = failure(request.response_status);
        if (error === null) return answer(call, request);
        over = true;
        return call.emit('error', {...error, metadata: trailer});
      });
    });
    call.on('end', () => last.then(() => over || call.end(trailer)));
  },
});
server.bindAsync(`127.0.0.1:${port}`, grpc.ServerCredentials.createInsecure(), (error) => {
  if (error) throw error;
});
