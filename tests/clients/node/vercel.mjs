// Vercel's ai SDK, by way of four providers: a case is PROVIDER:WHAT.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { degrees, run, weather } from "./case.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false; // it would print them among the JSON
const model = "scripted";
const told = (url) => ({ baseURL: `${url}/v1`, apiKey: "none" });
const providers = {
  compatible: (url) =>
    createOpenAICompatible({ name: "cortex", includeUsage: true, ...told(url) })(model),
  chat: (url) => createOpenAI(told(url)).chat(model),
  responses: (url) => createOpenAI(told(url)).responses(model),
  messages: (url) => createAnthropic(told(url))(model),
};
// messages asks for an object by a tool
const recipes = { compatible: "recipe", chat: "recipe", responses: "recipe", messages: "recipe-tool" };

const whats = {
  async text(model) {
    const { text, usage, finishReason } = await generateText({ model, prompt: "hello you" });
    return { text, usage, finishReason };
  },
  async stream(model) {
    const errors = [];
    const onError = ({ error }) => errors.push(error.message);
    const result = streamText({ model, prompt: "ponder", onError });
    await result.consumeStream();
    return { text: await result.text, thought: await result.reasoningText, errors };
  },
  async tools(model) {
    const called = [];
    const execute = async ({ city }) => {
      called.push(city);
      return degrees[city];
    };
    const { description, parameters } = weather;
    const get_weather = tool({ description, inputSchema: jsonSchema(parameters), execute });
    const result = streamText({
      model,
      prompt: "weather please",
      tools: { get_weather },
      stopWhen: stepCountIs(3),
    });
    await result.consumeStream();
    const steps = await result.steps;
    return { called, text: await result.text, reasons: steps.map((step) => step.finishReason) };
  },
  async object(model, prompt) {
    const schema = z.object({ name: z.string(), steps: z.number() });
    return (await generateObject({ model, schema, prompt })).object;
  },
  async die(model) {
    const errors = [];
    const onError = ({ error }) => errors.push(error.message ?? String(error));
    const result = streamText({ model, prompt: "die", onError, maxRetries: 0 });
    await result.consumeStream({ onError: () => {} });
    return { errors };
  },
  busy: (model) => generateText({ model, prompt: "busy", maxRetries: 0 }),
};

const names = Object.keys(providers).flatMap((p) => Object.keys(whats).map((w) => [p, w]));
const cases = Object.fromEntries(
  names.map(([p, w]) => [`${p}:${w}`, (url) => whats[w](providers[p](url), recipes[p])]),
);
await run(cases, (url) => url);
