// Markdown as elements. Text from the model is only ever text: no HTML of its comes to life, and
// links lead to http and https alone.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|(\d{1,9})[.)])(\s+)(?=\S)/;
const DASHES = /^ *\|?( *:?-+:? *\|)* *:?-+:? *\|? *$/;
const DEEPEST = 8; // quotes, lists and emphasis within each other

// Lengths are bounded, so that no text takes more than a moment.
const INLINE = new RegExp([
  String.raw`\\(?<escaped>[!-\/:-@[-\x60{-~])`,
  String.raw`(?<ticks>\x60+)(?<code>.{1,2000}?)(?<!\x60)\k<ticks>(?!\x60)`,
  String.raw`!?\[(?<label>[^[\]]{1,500})\]\(\s*<?(?<url>[^\s()<>]{1,2000}(?:\([^\s()<>]{0,200}\)[^\s()<>]{0,200})?)>?(?:\s+"[^"]{0,500}")?\s*\)`,
  String.raw`(?<bare>https?:\/\/[^\s<>"\x60*)\]]{1,2000}(?<![.,;:!?']))`,
  String.raw`\*\*(?=\S)(?<strong>.{0,2000}?\S)\*\*(?!\*)`,
  String.raw`(?<!\*)\*(?![\s*])(?<em>.{0,2000}?[^\s*])\*(?!\*)`,
  String.raw`(?<![\p{L}\p{N}_])_(?=\S)(?<under>.{0,2000}?[^\s_])_(?![\p{L}\p{N}_])`,
  String.raw`~~(?=\S)(?<gone>.{0,2000}?\S)~~`,
].join("|"), "gsu");

/** Show Markdown in an element; blocks that have not changed since the last call stay as they are. */
export function show(element, text) {
  const blocks = split(text.replaceAll("\r\n", "\n").split("\n"));
  const before = element.blocks ?? [];
  let same = 0;
  while (same < before.length && before[same] === blocks[same]?.join("\n")) same++;
  while (element.childNodes.length > same) element.lastChild.remove();
  for (const lines of blocks.slice(same)) element.append(block(lines, 0));
  element.blocks = blocks.map((lines) => lines.join("\n"));
}

/** The blocks of some lines, each as its lines. */
function split(lines) {
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (!lines[at].trim()) { at++; continue; }
    const end = endOf(lines, at);
    blocks.push(lines.slice(at, end));
    at = end;
  }
  return blocks;
}

/** Where the block that begins at a line ends. */
function endOf(lines, at) {
  const first = lines[at], fence = FENCE.exec(first);
  let end = at + 1;
  if (fence) {
    while (end < lines.length && !closes(lines[end], fence[1])) end++;
    return Math.min(end + 1, lines.length);
  }
  if (HEADING.test(first) || RULE.test(first)) return end;
  if (ITEM.test(first)) {
    for (; end < lines.length; end++) {
      const line = lines[end];
      if (!line.trim()) {
        const next = lines[end + 1] ?? "";
        if (!/^ {2,}\S/.test(next) && !ITEM.test(next)) break;
      } else if (!/^ {2,}/.test(line) && !ITEM.test(line) && begins(lines, end)) break;
    }
    return end;
  }
  const goesOn = QUOTE.test(first) ? (line) => QUOTE.test(line)
    : isTable(lines, at) ? (line) => line.includes("|")
    : (line, n) => line.trim() && !begins(lines, n);
  while (end < lines.length && goesOn(lines[end], end)) end++;
  return end;
}

const closes = (line, fence) => line.trim().startsWith(fence) && !line.trim().replaceAll(fence[0], "");
const isTable = (lines, at) => lines[at].includes("|") && lines[at + 1]?.includes("|")
  && DASHES.test(lines[at + 1]);
const begins = (lines, at) => [FENCE, HEADING, RULE, QUOTE, ITEM].some((b) => b.test(lines[at]))
  || isTable(lines, at);

function block(lines, depth) {
  const first = lines[0];
  const fence = FENCE.exec(first), heading = HEADING.exec(first);
  if (depth > DEEPEST) return make("p", lines.join("\n"));
  if (fence) return code(lines, fence);
  if (heading) return inline(make(`h${heading[1].length}`), heading[2]);
  if (RULE.test(first)) return make("hr");
  if (QUOTE.test(first)) {
    return fill(make("blockquote"), lines.map((line) => line.replace(QUOTE, "")), depth + 1);
  }
  if (ITEM.test(first)) return list(lines, depth);
  if (isTable(lines, 0)) return table(lines);
  return inline(make("p"), lines.map((line) => line.trim()).join("\n"));
}

function fill(element, lines, depth) {
  element.append(...split(lines).map((part) => block(part, depth)));
  return element;
}

function code(lines, fence) {
  const closed = lines.length > 1 && closes(lines.at(-1), fence[1]);
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  const box = make("div"), head = make("div"), copy = make("button", "Copy");
  box.className = "code";
  copy.type = "button";
  copy.className = "copy";
  const pre = make("pre");
  pre.tabIndex = 0; // so that keys can scroll it
  pre.append(make("code", text));
  head.append(make("span", fence[2]), copy);
  box.append(head, pre);
  return box;
}

function list(lines, depth) {
  const [, base, , start] = ITEM.exec(lines[0]);
  const whole = make(start === undefined ? "ul" : "ol");
  if (start !== undefined) whole.start = Number(start);
  const items = [];
  let width = 0;
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (found && (found[1].length <= base.length + 1 || !items.length)) {
      width = found[0].length;
      items.push([line.slice(width)]);
    } else {
      const indent = /^ */.exec(line)[0].length;
      // What is indented less than the text of its item, as models often do, is part of it too.
      items.at(-1).push(line.slice(Math.min(indent, width)));
    }
  }
  for (const item of items) {
    const own = fill(make("li"), item, depth + 1);
    if (own.firstChild?.tagName === "P") own.firstChild.replaceWith(...own.firstChild.childNodes);
    whole.append(own);
  }
  return whole;
}

function table(lines) {
  const box = make("div"), whole = make("table");
  box.className = "table";
  lines.forEach((line, n) => {
    if (n === 1) return;
    const row = make("tr");
    const cells = line.trim().replace(/^\|/, "").replace(/\|$/, "").split(/(?<!\\)\|/);
    for (const cell of cells) {
      row.append(inline(make(n ? "td" : "th"), cell.trim().replaceAll("\\|", "|")));
    }
    whole.append(row);
  });
  box.append(whole);
  return box;
}

/** Append text with its emphasis, code and links. */
function inline(element, text, depth = 0) {
  let at = 0;
  for (const found of depth > DEEPEST ? [] : text.matchAll(INLINE)) {
    const { escaped, code, label, url, bare, strong, em, under, gone } = found.groups;
    element.append(text.slice(at, found.index));
    at = found.index + found[0].length;
    if (escaped !== undefined) element.append(escaped);
    else if (code !== undefined) element.append(make("code", code.replace(/^ (.*\S.*) $/s, "$1")));
    else if (bare !== undefined) element.append(link(bare, make("span", bare)) ?? bare);
    else if (url !== undefined) {
      element.append(link(url, inline(make("span"), label, depth + 1)) ?? found[0]);
    } else {
      const name = strong !== undefined ? "strong" : gone !== undefined ? "del" : "em";
      element.append(inline(make(name), strong ?? gone ?? em ?? under, depth + 1));
    }
  }
  element.append(text.slice(at));
  return element;
}

/** A link to a web address; nothing for any other address. */
function link(address, content) {
  if (!/^https?:\/\//i.test(address) || !URL.canParse(address)) return null;
  const made = make("a");
  made.href = made.title = address;
  made.target = "_blank";
  made.rel = "noopener noreferrer";
  made.append(...content.childNodes);
  return made;
}

function make(name, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return made;
}
