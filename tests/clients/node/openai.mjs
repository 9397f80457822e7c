// The openai SDK: chat completions and responses.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { degrees, run, user, weather } from "./case.mjs";

const model = "scripted";
const tools = [{ type: "function", function: weather }];
const flat = [{ type: "function", strict: true, ...weather }];
const Recipe = z.object({ name: z.string(), steps: z.number() });

const cases = {
  async whole(ai) {
    const answer = await ai.chat.completions.create({ model, messages: [user("hello you")] });
    return { text: answer.choices[0].message.content, usage: answer.usage, id: answer._request_id };
  },
  async stream(ai) {
    const stream = await ai.chat.completions.create({
      model,
      messages: [user("ponder")],
      stream: true,
      stream_options: { include_usage: true },
    });
    let [text, thought, usage] = ["", "", null];
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      thought += chunk.choices[0]?.delta.reasoning_content ?? "";
      usage = chunk.usage ?? usage;
    }
    return { text, thought, usage };
  },
  async tools(ai) {
    const called = [];
    const tell = ({ city }) => {
      called.push(city);
      return degrees[city];
    };
    const tool = { ...weather, parse: JSON.parse, function: tell };
    const runner = ai.chat.completions.runTools({
      model,
      messages: [user("weather please")],
      tools: [{ type: "function", function: tool }],
      stream: true,
    });
    return { called, text: await runner.finalContent() };
  },
  async parse(ai) {
    const answer = await ai.chat.completions.parse({
      model,
      messages: [user("recipe")],
      response_format: zodResponseFormat(Recipe, "recipe"),
    });
    return answer.choices[0].message.parsed;
  },
  async responses(ai) {
    const stream = ai.responses.stream({ model, input: "ponder", store: false });
    const kinds = [];
    for await (const event of stream) kinds.push(event.type);
    const final = await stream.finalResponse();
    return { kinds, text: final.output_text, items: final.output.map((item) => item.type) };
  },
  async responsesTools(ai) {
    const input = [user("weather please")];
    const asked = { model, tools: flat, store: false };
    const first = await ai.responses.create({ ...asked, input });
    input.push(...first.output);
    for (const call of first.output.filter((item) => item.type === "function_call")) {
      const output = degrees[JSON.parse(call.arguments).city];
      input.push({ type: "function_call_output", call_id: call.call_id, output });
    }
    return { text: (await ai.responses.create({ ...asked, input })).output_text };
  },
  async completions(ai) {
    const answer = await ai.completions.create({ model, prompt: "hello" });
    return { text: answer.choices[0].text };
  },
  async embeddings(ai) {
    const answer = await ai.embeddings.create({ model, input: ["one", "two words"] });
    return answer.data.map((row) => row.embedding);
  },
  async models(ai) {
    const ids = [];
    for await (const row of ai.models.list()) ids.push(row.id);
    return ids;
  },
  busy: (ai) => ai.chat.completions.create({ model, messages: [user("busy")] }),
  unknown: (ai) => ai.chat.completions.create({ model: "nobody", messages: [user("hello")] }),
  overflow: (ai) =>
    ai.chat.completions.create({ model: "small", messages: [user("hello ".repeat(9))] }),
  async die(ai) {
    const stream = await ai.chat.completions.create({
      model,
      messages: [user("die")],
      stream: true,
    });
    for await (const _ of stream);
  },
};

await run(cases, (url) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 }));
