// The anthropic SDK: messages.
import Anthropic from "@anthropic-ai/sdk";
import { degrees, run, user, weather } from "./case.mjs";

const asked = { model: "scripted", max_tokens: 100 };
const { parameters: input_schema, ...named } = weather;
const tools = [{ ...named, input_schema }];

const cases = {
  async whole(ai) {
    const answer = await ai.messages.create({ ...asked, messages: [user("hello you")] });
    const { content, usage, stop_reason } = answer;
    return { text: content[0].text, usage, stop_reason, id: answer._request_id };
  },
  async stream(ai) {
    const stream = ai.messages.stream({ ...asked, messages: [user("ponder")] });
    const kinds = [];
    for await (const event of stream) kinds.push(event.type);
    const final = await stream.finalMessage();
    const [thinking, text] = final.content;
    return { kinds, thought: thinking.thinking, text: text.text, usage: final.usage };
  },
  async tools(ai) {
    const messages = [user("weather please")];
    const first = await ai.messages.stream({ ...asked, tools, messages }).finalMessage();
    const uses = first.content.filter((block) => block.type === "tool_use");
    const results = uses.map(({ id, input }) => ({
      type: "tool_result",
      tool_use_id: id,
      content: degrees[input.city],
    }));
    messages.push({ role: "assistant", content: first.content }, user(results));
    const second = await ai.messages.stream({ ...asked, tools, messages }).finalMessage();
    return { called: uses.map(({ input }) => input.city), text: second.content.at(-1).text };
  },
  async count(ai) {
    const { model } = asked;
    return await ai.messages.countTokens({ model, messages: [user("hello you")] });
  },
  async models(ai) {
    const ids = [];
    for await (const row of ai.models.list({ limit: 2 })) ids.push(row.id);
    return ids;
  },
  busy: (ai) => ai.messages.create({ ...asked, messages: [user("busy")] }),
  unknown: (ai) => ai.messages.create({ ...asked, model: "nobody", messages: [user("hello")] }),
  overflow: (ai) =>
    ai.messages.create({ ...asked, model: "small", messages: [user("hello ".repeat(9))] }),
  die: (ai) => ai.messages.stream({ ...asked, messages: [user("die")] }).finalMessage(),
  // the last: the gateway leaves the model alone for as long as this asks it to
  loading: (ai) => ai.messages.create({ ...asked, messages: [user("loading")] }),
};

await run(cases, (baseURL) => new Anthropic({ baseURL, apiKey: "none", maxRetries: 0 }));
