// The JavaScript clients of retrieval stacks against an endpoint: node clients.mjs BASE_URL MODEL PACKAGES_FOLDER.
// Prints a line of JSON for each: name, and what came of it. What is not installed in the folder is left out.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [base, model, folder] = process.argv.slice(2);
const resolve = createRequire(pathToFileURL(folder + "/")).resolve;
const installed = async name => {
  try { return await import(pathToFileURL(resolve(name))); } catch { return null; }
};
const tried = async (name, run) => {
  try { console.log(JSON.stringify([name, await run()])); }
  catch (error) { console.log(JSON.stringify([name, { error: error.status ?? error.constructor.name, message: String(error.message) }])); }
};
const long = "in of to ".repeat(60);

const openai = await installed("openai");
if (openai) {
  const client = new openai.default({ baseURL: base, apiKey: "unused", maxRetries: 0 });
  const embed = fields => client.embeddings.create({ model, input: "python class", ...fields });
  await tried("openai: default", async () => (await embed({})).data[0].embedding);
  await tried("openai: float", async () => (await embed({ encoding_format: "float" })).data[0].embedding);
  await tried("openai: list", async () => (await embed({ input: ["in", "of"] })).data.map(item => item.embedding.length));
  await tried("openai: models", async () => (await client.models.list()).data.map(item => item.id));
  await tried("openai: slash", async () => {
    const other = new openai.default({ baseURL: base + "/", apiKey: "unused", maxRetries: 0 });
    return (await other.embeddings.create({ model, input: "in" })).data[0].embedding.length;
  });
  await tried("openai: unknown model", async () => embed({ model: "absent" }));
  await tried("openai: token ids", async () => embed({ input: [[1, 2, 3]] }));
  await tried("openai: half an emoji", async () => embed({ input: ["in", "cut \ud83d"] }));
  await tried("openai: 100 at once", async () =>
    (await Promise.all(Array.from({ length: 100 }, (_, number) => embed({ input: "in " + number })))).length);
}

const ai = await installed("ai"), compatible = await installed("@ai-sdk/openai-compatible");
if (ai && compatible) {
  const provider = compatible.createOpenAICompatible({ name: "ours", baseURL: base, apiKey: "unused" });
  const chosen = (provider.textEmbeddingModel ?? provider.embeddingModel).call(provider, model);
  await tried("ai: embed", async () => (await ai.embed({ model: chosen, value: "python class" })).embedding);
  await tried("ai: embedMany", async () => {
    const values = Array.from({ length: 3000 }, (_, number) => "in " + number);
    return (await ai.embedMany({ model: chosen, values })).embeddings.length;
  });
}

const langchain = await installed("@langchain/openai");
if (langchain) {
  const client = new langchain.OpenAIEmbeddings({ model, apiKey: "unused", maxRetries: 0, configuration: { baseURL: base } });
  await tried("langchain: query", async () => client.embedQuery("python class"));
  await tried("langchain: documents", async () =>
    (await client.embedDocuments(Array.from({ length: 1500 }, (_, number) => "in\n" + number))).length);
  await tried("langchain: empty", async () => client.embedDocuments(["in", ""]));
  await tried("langchain: long", async () => (await client.embedDocuments([long])).length);
}
