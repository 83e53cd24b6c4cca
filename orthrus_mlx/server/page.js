// The page to chat in. It asks /v1/chat/completions as any client does.

import { Refused, events, key, request } from "./client.js";
import { show } from "./markdown.js";

const EXAMPLES = [
  "If a rectangle has length 12 and width 7, what is its area?",
  "Write a Python function that reverses a string.",
  "Ana Silva is 34 years old and lives in Porto. Give me that as JSON.",
  "Tell me a story about a lighthouse.",
];
const $ = (id) => document.getElementById(id);
const text = $("text"), scroll = $("scroll"), settings = $("settings").querySelector("form");

// ---- what is kept in this browser

function kept(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`orthrus-mlx ${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function keep(name, value) {
  try {
    localStorage.setItem(`orthrus-mlx ${name}`, JSON.stringify(value));
  } catch {
    trouble("This browser does not keep the chat: its storage is full or closed.");
  }
}

function keptChat(name) {
  const found = kept(name, []);
  return Array.isArray(found) ? found.filter((m) => typeof m?.content === "string") : [];
}

// ---- what is asked

// {role, content}, and of an answer also {thinking, seconds, figures, note, error, status, progress}.
let messages = keptChat("chat");
let asking = null; // the AbortController of the answer under way
let editing = false; // whether the composer holds the last question

function question() {
  const { system, temperature, max_tokens, seed, thinking } = kept("settings", {});
  const told = messages.filter((m) => m.role === "user" || m.content);
  const body = {
    messages: told.map(({ role, content }) => ({ role, content })),
    stream: true,
    stream_options: { include_usage: true },
  };
  if (system) body.messages.unshift({ role: "system", content: system });
  for (const [name, value] of Object.entries({ temperature, max_tokens, seed })) {
    if (value) body[name] = Number(value);
  }
  if (thinking) body.chat_template_kwargs = { enable_thinking: thinking === "on" };
  return body;
}

/** Answer the conversation, which ends with a question. If nothing comes, the answer before stays. */
async function answer(before = {}) {
  const body = question(), control = new AbortController(), started = performance.now();
  const said = { role: "assistant", content: "", thinking: "", note: "", figures: {} };
  messages.push(said);
  asking = control;
  trouble("");
  announce("Answering");
  const made = draw();
  let due = 0;
  const soon = () => { due ||= requestAnimationFrame(() => { due = 0; paint(made, said); }); };
  try {
    const response = await request("v1/chat/completions",
      { method: "POST", body: JSON.stringify(body), signal: control.signal });
    for await (const [kind, line] of events(response)) {
      if (kind === "data") take(said, JSON.parse(line), (performance.now() - started) / 1000);
      else said.progress = line;
      soon();
    }
  } catch (error) {
    if (control.signal.aborted) said.note = "stopped";
    else Object.assign(said, { error: error.message, status: error.status });
    const { content, thinking, seconds, figures } = before;
    if (!said.content && !said.thinking && content) {
      Object.assign(said, { content, thinking, seconds, figures });
    }
  }
  delete said.progress;
  cancelAnimationFrame(due);
  if (asking !== control) return; // another chat has begun
  asking = null;
  keep("chat", messages);
  draw(atEnd());
  if (said.status === 401) askForKey(key());
  announce(said.error ?? (said.note === "stopped" ? "Stopped" : said.content));
}

/** Take the next part of an answer. */
function take(said, { error, choices, usage, orthrus }, seconds) {
  if (error) throw new Refused(error.message);
  const { delta = {}, finish_reason: reason } = choices?.[0] ?? {};
  if (delta.content || delta.reasoning_content) said.figures.first ??= seconds;
  if (delta.reasoning_content) said.thinking += delta.reasoning_content;
  if (delta.content) {
    if (said.thinking) said.seconds ??= seconds - said.figures.first;
    said.content += delta.content;
  }
  if (reason === "length") said.note = "cut at the longest answer allowed";
  if (usage) Object.assign(said.figures, { tokens: usage.completion_tokens });
  if (orthrus) Object.assign(said.figures, orthrus);
}

function stop() {
  asking?.abort();
  focus();
}

function send(words) {
  if (asking || !words.trim()) return;
  if (editing) messages.splice(messages.findLastIndex((m) => m.role === "user"));
  edit(false);
  messages.push({ role: "user", content: words });
  text.value = "";
  grow();
  answer();
  focus();
}

function again() {
  answer(messages.at(-1)?.role === "assistant" ? messages.pop() : undefined);
  focus();
}

/** Be ready for the next message; on a touch screen that would open the keyboard. */
function focus() {
  if (!matchMedia("(pointer: coarse)").matches) text.focus();
}

function edit(on) {
  if (on) text.value = messages.findLast((m) => m.role === "user").content;
  else if (editing) text.value = "";
  editing = on;
  $("editing").hidden = !on;
  grow();
  if (on) text.focus();
}

/** End the answer under way, as the page or the chat is left. */
function leave() {
  if (!asking) return;
  messages.at(-1).note = "stopped";
  asking.abort();
  asking = null;
}

function change(chat) {
  leave();
  if (messages.length) keep("last chat", messages);
  messages = chat;
  keep("chat", messages);
  edit(false);
  trouble("");
  draw();
  focus();
}

// ---- what is seen

function make(name, className, content) {
  const made = document.createElement(name);
  made.className = className;
  if (content) made.textContent = content;
  return made;
}

const articles = new WeakMap(); // of messages

/** Show the conversation as it stands; the last message's element. */
function draw(follows = true) {
  const all = messages.map((message) => {
    const made = articles.get(message) ?? article(message);
    if (message.role === "assistant") paint(made, message);
    made.lastChild.replaceChildren(...below(message));
    return made;
  });
  const chat = $("chat");
  if (all.length !== chat.childNodes.length || all.some((a, n) => a !== chat.childNodes[n])) {
    chat.replaceChildren(...all);
  }
  $("empty").hidden = messages.length > 0;
  $("bring-back").hidden = !keptChat("last chat").length;
  $("stop").hidden = !asking;
  $("send").hidden = Boolean(asking);
  if (follows && messages.length) scroll.scrollTop = scroll.scrollHeight;
  $("to-end").hidden = atEnd();
  return all.at(-1);
}

function article(message) {
  const made = make("article", message.role), mine = message.role === "user";
  const content = make("div", "content", mine ? message.content : "");
  made.ariaLabel = mine ? "You" : "Answer";
  content.dir = "auto";
  if (mine) made.append(content);
  else {
    const thinking = make("details", "thinking");
    thinking.append(make("summary", ""), make("div", ""));
    made.append(thinking, content, make("p", "waiting"), make("p", "error"));
  }
  made.append(make("div", "below"));
  articles.set(message, made);
  return made;
}

/** Show an answer as it stands. */
function paint(made, message) {
  const follows = atEnd(), under = asking && message === messages.at(-1);
  const [thinking, content, wait, error] = made.children;
  thinking.hidden = !message.thinking;
  const [summary, thoughts] = thinking.children;
  const thinks = under && !message.content;
  summary.classList.toggle("waiting", thinks);
  summary.textContent = thinks ? "Thinking"
    : message.seconds ? `Thought for ${message.seconds.toFixed(1)} s` : "Thinking";
  if (thoughts.textContent !== message.thinking) thoughts.textContent = message.thinking;
  show(content, message.content);
  wait.hidden = !under || Boolean(message.content || message.thinking);
  const [, read] = /^reading ([1-9]\d*\/\d+)$/.exec(message.progress) ?? [];
  wait.textContent = read ? `Reading the prompt: ${read} tokens` : "Waiting for the first token";
  error.hidden = !message.error;
  error.textContent = message.error ?? "";
  if (follows) scroll.scrollTop = scroll.scrollHeight;
  $("to-end").hidden = atEnd();
}

/** The buttons and figures below a message that is over. */
function below(message) {
  const button = (name, action) => {
    const made = make("button", "", name);
    made.type = "button";
    made.onclick = () => action(made);
    return made;
  };
  const last = messages.findLast((m) => m.role === message.role) === message;
  if (asking && messages.indexOf(message) >= messages.length - 2) return [];
  if (message.role === "user") return last && !asking ? [button("Edit", () => edit(true))] : [];
  const made = [];
  if (message.content) made.push(button("Copy", (it) => copy(it, message.content)));
  if (last && !asking) made.push(button(message.error ? "Try again" : "Regenerate", again));
  const { tokens, first, ...more } = message.figures ?? {};
  const facts = [
    message.note,
    tokens && `${tokens} tokens`,
    more.tokens_per_second && `${more.tokens_per_second.toFixed(1)} tokens/s`,
    more.tokens_per_forward && `${more.tokens_per_forward.toFixed(2)} tokens/pass`,
    more.drafted_tokens && `${Math.round(100 * more.accepted_tokens / more.drafted_tokens)}% accepted`,
    first && `first token after ${first.toFixed(2)} s`,
    more.seed !== undefined && `seed ${more.seed} (${more.numerics})`,
  ];
  const stats = facts.filter(Boolean).map((fact) => make("span", "stat", fact));
  return [...made, ...stats];
}

const atEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 40;

function trouble(message, action) {
  $("trouble").textContent = message;
  $("trouble").hidden = !message;
  if (!action) return;
  const button = make("button", "", "Try again");
  button.onclick = action;
  $("trouble").append(" ", button);
}

function announce(message) {
  $("announce").textContent = message;
}

function grow() {
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight + 2}px`;
  $("send").disabled = !text.value.trim();
}

async function copy(button, content) {
  try {
    await navigator.clipboard.writeText(content);
  } catch { // browsers have no clipboard for pages that came by plain HTTP from elsewhere
    const area = make("textarea", "unseen");
    area.value = content;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

// ---- the server

async function meet() {
  let model;
  try {
    model = (await (await request("v1/models")).json()).data[0];
  } catch (error) {
    if (error.status === 401) askForKey(key());
    else trouble(error.message, meet);
    return false;
  }
  trouble("");
  const { temperature, max_tokens: most, switches_thinking: switches } = model.orthrus;
  document.title = `${model.id} · orthrus-mlx`;
  $("model").textContent = $("empty-model").textContent = model.id;
  settings.temperature.placeholder = temperature ?? "";
  settings.max_tokens.placeholder = most > 0 ? most : "all that fits";
  $("thinking-choice").hidden = !switches;
  return true;
}

function askForKey(refused) {
  if (refused) $("key-note").textContent = "The server does not know that key. Is it typed right?";
  $("key-form").hidden = false;
  $("key").select();
  $("key").focus();
}

// ---- what is done

$("compose").onsubmit = (event) => {
  event.preventDefault();
  send(text.value);
};
text.oninput = grow;
text.onkeydown = (event) => {
  // While an input method composes a word, Enter ends the word. Safari says so by the code alone.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  send(text.value);
};
document.onkeydown = (event) => {
  if (event.key !== "Escape" || event.isComposing || $("settings").open) return;
  if (asking) stop();
  else if (editing) edit(false);
};
scroll.onscroll = () => { $("to-end").hidden = atEnd(); };
scroll.onclick = ({ target }) => {
  if (target.className === "copy") copy(target, target.closest(".code").querySelector("code").textContent);
};
$("to-end").onclick = () => { scroll.scrollTop = scroll.scrollHeight; };
$("stop").onclick = stop;
$("new").onclick = () => change([]);
$("bring-back").onclick = () => change(keptChat("last chat"));
$("leave-editing").onclick = () => edit(false);
$("key-form").onsubmit = async (event) => {
  event.preventDefault();
  key($("key").value);
  if (!await meet()) return;
  $("key-form").hidden = true;
  focus();
  if (messages.at(-1)?.status === 401) again();
};
$("open-settings").onclick = () => {
  for (const [name, value] of Object.entries(kept("settings", {}))) {
    if (settings.elements[name]) settings.elements[name].value = value;
  }
  $("settings").showModal();
};
settings.onchange = () => {
  const fields = [...settings.elements].filter((field) => field.name && field.checkValidity());
  keep("settings", Object.fromEntries(fields.map((field) => [field.name, field.value])));
};
$("reset").onclick = () => {
  settings.reset();
  settings.onchange();
};
addEventListener("storage", (event) => { // another tab has gone on with the chat
  if (event.key !== "orthrus-mlx chat" || asking) return;
  messages = keptChat("chat");
  draw();
});
addEventListener("pagehide", () => {
  if (!asking) return;
  leave();
  keep("chat", messages);
  draw(); // a browser may show the page again as it was
});

for (const example of EXAMPLES) {
  const item = make("li", ""), button = make("button", "", example);
  button.type = "button";
  button.onclick = () => send(example);
  item.append(button);
  $("examples").append(item);
}
draw();
grow();
meet();
