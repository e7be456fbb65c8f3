// A client by one of the official TypeScript SDKs, for tests that drive several.
//
//   TOKEN=... node agent.mjs SDK URL ERA
//
// SDK: v1 (@modelcontextprotocol/sdk, which speaks 2025-11-25) or v2
// (@modelcontextprotocol/client). ERA: a revision to insist on. It reads requests as
// lines of JSON, {"list": true}, {"list": "resources" | "templates" | "prompts"} or
// {"call": TOOL, "args": {}}, and answers each with a line. The first line it writes is
// {"ready": REVISION}.
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const [sdk, url, era] = process.argv.slice(2);
const from = (path) => import(pathToFileURL(`${process.env.TOOLBROKER_NPM}/@modelcontextprotocol/${path}`));
const requestInit = { headers: { Authorization: `Bearer ${process.env.TOKEN}` } };
const me = { name: 'agent.mjs', version: '1' };

let client, transport, revision;
if (sdk === 'v1') {
  const { Client } = await from('sdk/dist/esm/client/index.js');
  const { StreamableHTTPClientTransport } = await from('sdk/dist/esm/client/streamableHttp.js');
  client = new Client(me);
  transport = new StreamableHTTPClientTransport(new URL(url), { requestInit });
  await client.connect(transport);
  revision = transport.protocolVersion;
} else {
  const { Client, StreamableHTTPClientTransport } = await from('client/dist/index.mjs');
  client = new Client(me, { versionNegotiation: { mode: era < '2026' ? 'legacy' : { pin: era } } });
  transport = new StreamableHTTPClientTransport(new URL(url), { requestInit });
  await client.connect(transport);
  revision = client.getNegotiatedProtocolVersion();
}
const say = (what) => process.stdout.write(JSON.stringify(what) + '\n');
say({ ready: revision });
const lists = {
  true: async () => (await client.listTools()).tools.map((t) => t.name),
  resources: async () => (await client.listResources()).resources.map((r) => r.uri),
  templates: async () => (await client.listResourceTemplates()).resourceTemplates.map((r) => r.uriTemplate),
  prompts: async () => (await client.listPrompts()).prompts.map((p) => p.name),
};
for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  try {
    if (asked.list) say({ names: await lists[asked.list]() });
    else {
      const { content, isError } = await client.callTool({ name: asked.call, arguments: asked.args ?? {} });
      say({ text: JSON.stringify(content), isError: isError ?? false });
    }
  } catch (e) {
    say({ error: String(e) });
  }
}
await client.close();
