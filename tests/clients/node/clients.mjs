// Clients from npm against a gateway, one a process:
//
//     node clients.mjs CLIENT BASE_URL KEY MODEL
//
// prints one JSON object: what each case gave, or `error: …` where it failed. What must hold is the test's affair.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, streamText, tool } from "ai";
import OpenAI from "openai";
import { z } from "zod";

const [client, baseURL, apiKey, model] = process.argv.slice(2);
const QUESTION = "Where does a river begin?";
const parameters = { type: "object", properties: { station: { type: "string" } }, required: ["station"] };

const level = {
  name: "level",
  description: "Tells the level at a station",
  parameters: { type: "object", properties: { station: { enum: ["Upper Fall", "Lower Fall"] } }, required: ["station"] },
};
const CALL_TOKENS = 60;

async function gathered(parts) {
  const texts = [];
  for await (const text of parts) if (text) texts.push(text);
  return { text: texts.join(""), pieces: texts.length };
}

function openai_node() {
  const api = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
  const asked = { messages: [{ role: "user", content: QUESTION }], max_tokens: 12 };
  return {
    plain: async () => (await api.chat.completions.create({ model, ...asked })).choices[0].message.content,
    stream: async () => {
      const options = { stream: true, stream_options: { include_usage: true } };
      const texts = [];
      let usage;
      for await (const chunk of await api.chat.completions.create({ model, ...asked, ...options })) {
        if (chunk.choices[0]?.delta.content) texts.push(chunk.choices[0].delta.content);
        usage = chunk.usage?.completion_tokens ?? usage;
      }
      return { text: texts.join(""), pieces: texts.length, usage };
    },
    tool: async () => {
      const tools = [{ type: "function", function: { name: "gauge", parameters } }];
      const answer = await api.chat.completions.create({ model: "tools", tools, ...asked });
      const call = answer.choices[0].message.tool_calls[0].function;
      return { name: call.name, arguments: JSON.parse(call.arguments) };
    },
    called: async () => {
      const forced = { tool_choice: "required", parallel_tool_calls: false, max_tokens: CALL_TOKENS };
      const tools = [{ type: "function", function: level }];
      const { choices } = await api.chat.completions.create({ model, messages: asked.messages, tools, ...forced });
      const [call] = choices[0].message.tool_calls;
      return {
        name: call.function.name,
        arguments: JSON.parse(call.function.arguments),
        reason: choices[0].finish_reason,
        content: choices[0].message.content,
      };
    },
    called_stream: async () => {
      const forced = { tool_choice: "required", parallel_tool_calls: false, max_tokens: CALL_TOKENS };
      const tools = [{ type: "function", function: level }];
      const stream = api.chat.completions.stream({ model, messages: asked.messages, tools, ...forced });
      const [call] = (await stream.finalChatCompletion()).choices[0].message.tool_calls;
      return { name: call.function.name, arguments: JSON.parse(call.function.arguments) };
    },
    failure: async () => {
      try {
        await api.chat.completions.create({ model: "nothing", ...asked });
      } catch (error) {
        return { status: error.status, code: error.code, request: error.requestID };
      }
    },
    receipt: async () => {
      const { data, response } = await api.chat.completions.create({ model: "fine", ...asked }).withResponse();
      return response.headers.get("headwater-receipt") === data.headwater.receipt;
    },
    responses: async () => {
      const answer = await api.responses.create({ model, input: QUESTION, max_output_tokens: 12 });
      return { text: answer.output_text, usage: answer.usage.output_tokens };
    },
    sources: async () => {
      const answer = await api.chat.completions.create({ model: "fine", headwater: { retrieve: 2 }, ...asked });
      return answer.headwater.sources.map((source) => source.kind);
    },
  };
}

function sdk(language) {
  const asked = { prompt: QUESTION, maxOutputTokens: 12, maxRetries: 0 };
  return {
    plain: async () => (await generateText({ model: language(model), ...asked })).text,
    stream: async () => {
      const result = streamText({ model: language(model), ...asked });
      const found = await gathered(result.textStream);
      return { ...found, usage: (await result.usage).outputTokens };
    },
    tool: async () => {
      const gauge = tool({ description: "Reads a gauge", inputSchema: z.object({ station: z.string() }) });
      const result = await generateText({ model: language("tools"), tools: { gauge }, ...asked });
      return { name: result.toolCalls[0].toolName, arguments: result.toolCalls[0].input };
    },
    called: async () => {
      const inputSchema = z.object({ station: z.enum(["Upper Fall", "Lower Fall"]) });
      const tools = { level: tool({ description: level.description, inputSchema }) };
      const forced = { tools, toolChoice: { type: "tool", toolName: "level" }, maxOutputTokens: CALL_TOKENS };
      const result = await generateText({ model: language(model), ...asked, ...forced });
      return { name: result.toolCalls[0].toolName, arguments: result.toolCalls[0].input };
    },
    called_stream: async () => {
      const inputSchema = z.object({ station: z.enum(["Upper Fall", "Lower Fall"]) });
      const tools = { level: tool({ description: level.description, inputSchema }) };
      const forced = { tools, toolChoice: "required", maxOutputTokens: CALL_TOKENS };
      const calls = await streamText({ model: language(model), ...asked, ...forced }).toolCalls;
      return { name: calls[0].toolName, arguments: calls[0].input };
    },
    failure: async () => {
      try {
        await generateText({ model: language("nothing"), ...asked });
      } catch (error) {
        return { status: error.statusCode, code: error.data?.error.code };
      }
    },
    receipt: async () => {
      const result = await generateText({ model: language("fine"), ...asked });
      return result.response.headers["headwater-receipt"].startsWith("call_");
    },
  };
}

const clients = {
  openai_node,
  ai_sdk_compatible: () => sdk(createOpenAICompatible({ name: "hw", baseURL, apiKey, includeUsage: true })),
  ai_sdk_openai: () => {
    const provider = createOpenAI({ baseURL, apiKey });
    const cases = sdk((name) => provider.chat(name));
    const response = { model: provider.responses(model), prompt: QUESTION, maxOutputTokens: 16, maxRetries: 0 };
    return {
      ...cases,
      responses: async () => {
        const result = streamText(response);
        const found = await gathered(result.textStream);
        return { text: found.text, usage: (await result.usage).outputTokens };
      },
    };
  },
};

const found = {};
for (const [name, run] of Object.entries(clients[client]())) {
  try {
    found[name] = (await run()) ?? null;
  } catch (error) {
    found[name] = `error: ${error.name}: ${error.message}`.slice(0, 400);
  }
}
console.log(JSON.stringify(found));
