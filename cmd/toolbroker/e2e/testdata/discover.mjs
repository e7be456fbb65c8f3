// An MCP client that knows a server's URL and nothing else. It finds out who may
// let it in, registers, sends its user there and comes back with a token; the
// official client does all of it but open the browser.
//
//   node discover.mjs URL ERA       ERA: legacy, or a revision to insist on
//
// It reads requests as lines of JSON, {"list": true} or {"call": TOOL, "args": {}},
// and answers each with a line. The first line it writes is {"ready": REVISION}.
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const packages = process.env.TOOLBROKER_NPM;
const { Client, StreamableHTTPClientTransport, UnauthorizedError } = await import(
  pathToFileURL(`${packages}/@modelcontextprotocol/client/dist/index.mjs`)
);
const [url, era] = process.argv.slice(2);
const back = 'http://127.0.0.1/callback';

// What the client remembers, and the browser of a user who says yes.
class User {
  redirectUrl = back;
  clientMetadata = {
    client_name: 'discover.mjs',
    redirect_uris: [back],
    grant_types: ['authorization_code'],
    response_types: ['code'],
    token_endpoint_auth_method: 'none',
  };
  #state = crypto.randomUUID();
  state() { return this.#state; }
  clientInformation() { return this.client; }
  saveClientInformation(client) { this.client = client; }
  tokens() { return this.saved; }
  saveTokens(tokens) { this.saved = tokens; }
  saveCodeVerifier(verifier) { this.verifier = verifier; }
  codeVerifier() { return this.verifier; }
  async redirectToAuthorization(to) {
    for (let hops = 0; hops < 10; hops++) {
      if (to.href.startsWith(back + '?')) {
        if (to.searchParams.get('state') !== this.#state) throw new Error('not our state');
        this.landed = to.searchParams;
        return;
      }
      const page = await fetch(to, { redirect: 'manual' });
      if (!page.headers.has('location')) throw new Error(`no way on: ${page.status} ${await page.text()}`);
      to = new URL(page.headers.get('location'), to);
    }
    throw new Error('redirected without end');
  }
}

const user = new User();
const connect = async () => {
  const client = new Client(
    { name: 'discover.mjs', version: '1' },
    { versionNegotiation: { mode: era === 'legacy' ? 'legacy' : { pin: era } } },
  );
  const transport = new StreamableHTTPClientTransport(new URL(url), { authProvider: user });
  try {
    await client.connect(transport);
  } catch (e) {
    e.transport = transport;
    throw e;
  }
  return client;
};

let client;
try {
  client = await connect();
} catch (e) {
  if (!(e instanceof UnauthorizedError)) throw e;
  await e.transport.finishAuth(user.landed);
  client = await connect();
}
const say = (what) => process.stdout.write(JSON.stringify(what) + '\n');
say({ ready: client.getNegotiatedProtocolVersion() });
for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  try {
    if (asked.list) say({ names: (await client.listTools()).tools.map((t) => t.name) });
    else {
      const { content, isError } = await client.callTool({ name: asked.call, arguments: asked.args ?? {} });
      say({ text: JSON.stringify(content), isError: isError ?? false });
    }
  } catch (e) {
    say({ error: String(e) });
  }
}
await client.close();
