// node SCRIPT.mjs URL CASE: runs one of a script's cases and prints what came of it as JSON.

export async function run(cases, open) {
  const [url, name] = process.argv.slice(2);
  let came;
  try {
    came = await cases[name](open(url));
  } catch (error) {
    came = {
      raised: error.constructor.name,
      status: error.status ?? error.statusCode ?? null,
      code: error.code ?? null,
      type: error.type ?? null,
      message: error.message,
    };
  }
  console.log(JSON.stringify(came ?? null));
}

export const weather = {
  name: "get_weather",
  description: "Tell the weather.",
  parameters: {
    type: "object",
    properties: { city: { type: "string" } },
    required: ["city"],
    additionalProperties: false,
  },
};
export const user = (content) => ({ role: "user", content });
export const degrees = { Paris: "12 degrees", Oslo: "5 degrees" };
