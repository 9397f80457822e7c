// node SCRIPT.mjs URL: runs a script's cases and prints what came of each as JSON, by its name.

export async function run(cases, open) {
  const came = {};
  const given = open(process.argv[2]);
  for (const [name, work] of Object.entries(cases)) {
    try {
      came[name] = await work(given);
    } catch (error) {
      came[name] = {
        raised: error.constructor.name,
        status: error.status ?? error.statusCode ?? null,
        code: error.code ?? null,
        type: error.type ?? null,
        message: error.message,
      };
    }
  }
  console.log(JSON.stringify(came));
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
