// node's own HTTP/2, without gRPC: what neither gRPC's programs nor nghttp do, such as many small padded frames, extension frames, and SETTINGS amid a stream.
//
// Usage: node http2.js serve PORT
//        node http2.js ADDRESS CASE...     (a line for each case: "ok CASE", or "not ok CASE: why")
'use strict';
const assert = require('node:assert');
const http2 = require('node:http2');
const {once} = require('node:events');

const {constants} = http2;
const padded = {paddingStrategy: constants.PADDING_STRATEGY_MAX};
const patience = 20_000; // ms

function serve(port) {
  const server = http2.createServer(padded);
  server.on('stream', (stream, headers) => {
    stream.on('error', () => {}); // the client may have gone
    switch (headers[':path']) {
      case '/echo':
        stream.respond({':status': 200}, {waitForTrailers: true});
        stream.on('wantTrailers', () => stream.sendTrailers({'x-after': 'echo'}));
        stream.pipe(stream);
        break;
      case '/extensions': // ALTSVC (RFC 7838) and ORIGIN (RFC 8336) are for the next hop, which doesn't know them (RFC 9113, 5.5)
        stream.additionalHeaders({':status': 103, link: '</a.css>'});
        stream.session.altsvc('h2=":8000"', stream.id);
        stream.session.origin('https://example.org');
        stream.session.settings({initialWindowSize: 1 << 20, maxConcurrentStreams: 50});
        stream.session.ping(() => stream.respond({':status': 200}, {endStream: true}));
        break;
      case '/enhance-your-calm':
        stream.respond({':status': 200}, {waitForTrailers: true}); // otherwise END_STREAM would go first
        stream.on('wantTrailers', () => stream.close(constants.NGHTTP2_ENHANCE_YOUR_CALM));
        stream.end('half');
        break;
      case '/fields':
        stream.respond({':status': 200, 'set-cookie': ['a=1', 'b=2'], 'x-many': ['1', '2'], 'x-empty': '', 'x-latin': 'caf\u00e9'});
        stream.end(JSON.stringify(Object.entries(headers).filter(([name]) => name.startsWith('x-') || name === 'cookie')));
        break;
      case '/goaway':
        stream.session.close();
        // falls through
      case '/slow':
        stream.respond({':status': 200});
        setTimeout(() => stream.end('done'), 50);
        break;
      default:
        stream.respond({':status': 404}, {endStream: true});
    }
  });
  server.listen(port, '127.0.0.1');
}

/** exchange makes a request and resolves to {headers, interim, body, trailers, code}. */
async function exchange(session, path, send = async () => {}, fields = {}) {
  const stream = session.request({':path': path, ':method': 'POST', ...fields}, {endStream: false});
  const got = {interim: [], body: '', trailers: {}};
  stream.setEncoding('utf8');
  stream.on('headers', (h) => got.interim.push(h));
  stream.on('response', (h) => { got.headers = h; });
  stream.on('trailers', (h) => { got.trailers = h; });
  stream.on('data', (s) => { got.body += s; });
  stream.on('error', (e) => { got.error = e; });
  const closed = new Promise((resolve) => stream.on('close', resolve));
  const late = setTimeout(() => stream.destroy(new Error('no answer in time')), patience);
  await send(stream);
  stream.end();
  await closed;
  clearTimeout(late);
  return {...got, code: stream.rstCode};
}

const write = (stream, data) => new Promise((resolve, reject) => stream.write(data, (e) => (e ? reject(e) : resolve())));

function succeeded(got) {
  assert.ok(!got.error, String(got.error));
  assert.strictEqual(got.headers[':status'], 200);
}

const cases = {
  // 4,000 frames of 100 bytes with up to 255 bytes of padding: each way more padding than a window, which has to come back.
  async small_padded_frames(session) {
    const got = await exchange(session, '/echo', async (stream) => {
      for (let i = 0; i < 4000; i++) await write(stream, String(i % 10).repeat(100));
    });
    succeeded(got);
    assert.strictEqual(got.body, Array.from({length: 4000}, (_, i) => String(i % 10).repeat(100)).join(''));
    assert.strictEqual(got.trailers['x-after'], 'echo');
  },

  async extension_frames(session) {
    for (let i = 0; i < 3; i++) {
      const got = await exchange(session, '/extensions');
      succeeded(got);
      assert.deepStrictEqual(got.interim.map((h) => [h[':status'], h.link]), [[103, '</a.css>']]);
    }
  },

  async reset_with_code(session) {
    const got = await exchange(session, '/enhance-your-calm');
    assert.strictEqual(got.body, 'half');
    assert.strictEqual(got.code, constants.NGHTTP2_ENHANCE_YOUR_CALM);
    succeeded(await exchange(session, '/fields')); // and nobody else was hurt
  },

  async fields(session) {
    const got = await exchange(session, '/fields', undefined, {'x-list': ['a', 'b'], 'x-empty': '', cookie: ['a=1', 'b=2'], 'x-never': 'secret', [http2.sensitiveHeaders]: ['x-never']});
    succeeded(got);
    assert.deepStrictEqual(JSON.parse(got.body), [['x-list', 'a, b'], ['x-empty', ''], ['cookie', 'a=1; b=2'], ['x-never', 'secret']]);
    assert.deepStrictEqual([got.headers['set-cookie'], got.headers['x-many'], got.headers['x-empty'], got.headers['x-latin']], [['a=1', 'b=2'], '1, 2', '', 'caf\u00e9']);
  },

  // The window of all streams shrinks below what is in flight, and grows again (RFC 9113, 6.9.2).
  async settings_amid_a_stream(session) {
    const text = 'x'.repeat(64 << 10);
    const got = await exchange(session, '/echo', async (stream) => {
      for (const initialWindowSize of [100, 0, 1000, 1 << 20, 65535]) {
        await new Promise((resolve) => session.settings({initialWindowSize, headerTableSize: initialWindowSize % 4096}, resolve));
        stream.write(text);
      }
    });
    succeeded(got);
    assert.strictEqual(got.body.length, 5 * text.length);
  },

  // One of two backends sends GOAWAY amid a hundred calls: those that it takes no more go on at the other (4.1).
  async backend_goes_away(session) {
    const calls = [];
    for (let i = 0; i < 100; i++) {
      calls.push(exchange(session, i === 50 ? '/goaway' : '/slow'));
      if (i % 5 === 0) await new Promise(setImmediate); // so that some are on their way when it comes
    }
    for (const got of await Promise.all(calls)) {
      succeeded(got);
      assert.strictEqual(got.body, 'done');
    }
  },

  // The client's own end: what runs is finished, then the connection is closed.
  async client_goes_away(session) {
    const running = exchange(session, '/slow');
    session.close();
    const got = await running;
    succeeded(got);
    assert.strictEqual(got.body, 'done');
    if (!session.destroyed) await once(session, 'close');
  },

  async ping(session) {
    const payload = Buffer.from('lbagent!');
    const back = await new Promise((resolve, reject) => session.ping(payload, (e, _, b) => (e ? reject(e) : resolve(b))));
    assert.ok(back.equals(payload));
  },
};

async function main(address, wanted) {
  let bad = 0;
  for (const name of wanted) {
    const session = http2.connect(`http://${address}`, padded);
    session.on('error', () => {}); // the streams tell it too
    await once(session, 'connect');
    try {
      assert.ok(cases[name], 'there is no such case');
      await cases[name](session);
      console.log(`ok ${name}`);
    } catch (e) {
      bad++;
      console.log(`not ok ${name}: ${String(e.message ?? e).replaceAll('\n', ' | ')}`);
    }
    session.destroy();
  }
  process.exit(bad > 0 ? 1 : 0);
}

const [first, ...rest] = process.argv.slice(2);
if (first === 'serve') serve(Number(rest[0]));
else main(first, rest);
