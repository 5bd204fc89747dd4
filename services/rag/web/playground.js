// Runs before LangServe's own script in its pages (/rag/playground, /chat/playground), which as released
//   - print a streamed dictionary as one JSON object a token: here it becomes the answer, then its sources;
//   - know nothing of citations: here a list of links shows the pages, with what was quoted marked;
//   - say nothing when a request fails, before or in the middle of the stream: here the reason is shown;
//   - draw earlier turns as nested lists that cannot be filled in: here they are fields, one pair a turn;
//   - send a message when Enter only ends the composing of a Chinese word.
// Only the page changes: the requests and the API's answers are what every other client gets.
(() => {
  "use strict";
  const original = window.fetch;
  let notice = null;
  let sources = null;

  if (window.INPUT_SCHEMA) drawable(window.INPUT_SCHEMA);

  window.fetch = async (target, init) => {
    const url = new URL(target instanceof Request ? target.url : target, location.href);
    if (url.pathname.endsWith("/input_schema")) {
      const response = await original(target, init);
      return response.ok ? Response.json(drawable(await response.json())) : response;
    }
    if (!url.pathname.endsWith("/stream_log")) return original(target, init);
    notice?.remove();
    sources?.remove();
    sources = null;
    let response;
    try {
      response = await original(target, init);
    } catch (error) {
      if (error.name !== "AbortError") show("The service does not answer: is it still running?");
      throw error;
    }
    if (!response.ok) {
      const text = await response.text();
      show(reason(text) ?? `${response.status} ${response.statusText}`);
      // The page would only complain about the content type.
      throw new Error(reason(text) ?? text);
    }
    const { status, headers } = response;
    return new Response(readable(response.body, { question: question(init), cited: new Map() }), { status, headers });
  };

  // The form knows a pair only as JSON Schema wrote it before 2020, and its widget by `extra`.
  function drawable(schema) {
    const history = schema.properties?.chat_history;
    if (history?.items?.prefixItems) {
      const { prefixItems: items, ...rest } = history.items;
      Object.assign(history, { items: { ...rest, items }, extra: { widget: { type: "chat" } } });
    }
    return schema;
  }

  // The event stream, each event rewritten as it comes. An error event breaks it, so that the page stops waiting.
  function readable(body, asked) {
    const events = split(body.pipeThrough(new TextDecoderStream()).getReader());
    const encoder = new TextEncoder();
    const pull = async (controller) => {
      try {
        const { value, done } = await events.next();
        if (done) controller.close();
        else controller.enqueue(encoder.encode(`${rewritten(value, asked)}\n\n`));
      } catch (error) {
        if (error.name !== "AbortError") show(error.shown ?? "The service went away in the middle of the answer.");
        controller.error(error);
      }
    };
    // Nothing is queued: an error would throw away what the page has not read yet.
    return new ReadableStream({ pull, cancel: () => events.return() }, { highWaterMark: 0 });
  }

  async function* split(reader) {
    let rest = "";
    try {
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        const events = (rest + value).split(/\r\n\r\n|\n\n/);
        rest = events.pop();
        yield* events;
      }
    } finally {
      await reader.cancel();
    }
  }

  function rewritten(event, asked) {
    const lines = event.split(/\r?\n/);
    const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
    if (lines.some((line) => /^event: ?error$/.test(line))) {
      const shown = reason(data) ?? data;
      throw Object.assign(new Error(shown), { shown });
    }
    if (!lines.some((line) => /^event: ?data$/.test(line))) return event;
    const { ops, ...others } = JSON.parse(data);
    for (const op of ops) {
      if (op.path.endsWith("/streamed_output/-")) op.value?.citations?.forEach?.((c) => asked.cited.set(c.index, c));
      if (op.path === "/streamed_output/-" && typeof op.value === "object") op.value = asText(op.value, asked);
    }
    if (asked.cited.size > (sources?.shown ?? 0)) list([...asked.cited.values()]);
    return `event: data\ndata: ${JSON.stringify({ ...others, ops })}`;
  }

  // A chunk of the output as a person reads it; the sources come last, with the chunk that ends the answer.
  function asText({ standalone_question: standalone, answer = "", answerable }, { question, cited }) {
    const understood = standalone && question && standalone !== question ? `→ ${standalone}\n\n` : "";
    if (answerable === undefined || !cited.size) return understood + answer;
    const lines = [...cited.values()].map((c) => `\n[${c.index}] ${c.filename}, ${place(c)}: “${c.quote.trim()}”`);
    return `${understood}${answer}\n${lines.join("")}`;
  }

  function place(citation) {
    return citation.label || `p. ${citation.page}`;
  }

  // Links to the pages. The picture is asked for first; a format that has none is shown as its text.
  function list(citations) {
    sources?.remove();
    sources = document.createElement("nav");
    sources.setAttribute("aria-label", "Sources");
    sources.shown = citations.length;
    for (const c of citations) {
      const link = document.createElement("a");
      const page = `/documents/${encodeURIComponent(c.document_id)}/pages/${c.page}`;
      const pictured = /\.(pdf|png|jpe?g|tiff?|webp|bmp|gif)$/i.test(c.filename);
      link.href = pictured ? `${page}/image?start=${c.start}&end=${c.end}` : page;
      link.target = "_blank";
      link.rel = "noopener";
      link.title = c.quote.trim();
      link.textContent = `[${c.index}] ${c.filename}, ${place(c)}`;
      link.style.cssText = "display:block;overflow-wrap:anywhere;color:#1d4ed8;text-decoration:underline;margin:.15rem 0";
      sources.append(link);
    }
    sources.style.cssText =
      "position:fixed;right:1rem;top:5.5rem;z-index:9;max-width:min(18rem,40vw);max-height:40vh;overflow:auto;padding:.5rem .75rem;" +
      "border:1px solid #d0d5dd;border-radius:.75rem;background:#fff;font:.875rem system-ui,sans-serif;box-shadow:0 4px 16px #0002";
    document.body.append(sources);
  }

  function question(init) {
    try {
      return JSON.parse(init.body).input.question.trim();
    } catch {
      return null;
    }
  }

  // The message of an error of ours, or of LangServe's.
  function reason(text) {
    try {
      const body = JSON.parse(text);
      return body.error?.message ?? body.message ?? null;
    } catch {
      return null;
    }
  }

  function show(message) {
    notice?.remove();
    notice = document.createElement("div");
    notice.setAttribute("role", "alert");
    notice.title = "Click to close";
    notice.textContent = message;
    notice.onclick = () => notice.remove();
    notice.style.cssText =
      "position:fixed;top:1rem;left:50%;transform:translateX(-50%);max-width:min(90vw,48rem);z-index:10;cursor:pointer;" +
      "padding:.75rem 1rem;border:1px solid #b42318;border-radius:.75rem;background:#fef3f2;color:#b42318;" +
      "font:1rem system-ui,sans-serif;white-space:pre-wrap;overflow-wrap:anywhere;box-shadow:0 4px 16px #0003";
    document.body.append(notice);
  }

  // Older Safari reports the Enter that ends a composition as not composing, with key code 229.
  const composing = (event) => {
    if (event.key === "Enter" && (event.isComposing || event.keyCode === 229)) event.stopImmediatePropagation();
  };
  window.addEventListener("keydown", composing, true);
})();
