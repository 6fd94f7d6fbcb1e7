// Which words of a prompt the model knows. The service has the last word (`unknown_words`). No DOM.

/** @typedef {{text: string, unknown: boolean}} Piece */
/** @typedef {{prompt: string, weight: number}} Weighted */

const WORD = /[\p{L}\p{N}_]+(?:['\u2019-][\p{L}\p{N}_]+)*/gu;
const SMALL = new Set("a an and as at by for from in into is it its of on or over style the to under with".split(" "));

/** @param {string} text */
function spelled(text) {
  return [...text.matchAll(WORD)].map((found) => ({ at: found.index, text: found[0], word: found[0].toLowerCase() }));
}

/**
 * The prompt in pieces, marked where the model was never taught a word: a phrase counts where its words stand
 * whole and in order, as the service counts it. With no phrases (a model that takes any prompt) only what the
 * service says is marked.
 * @param {string} prompt
 * @param {string[]} phrases what the model was trained on
 * @param {string[]} unknown words that the service did not know
 * @returns {Piece[]}
 */
export function mark(prompt, phrases, unknown = []) {
  const words = spelled(prompt);
  const known = words.map(({ word }) => phrases.length === 0 || SMALL.has(word));
  for (const phrase of phrases) {
    const wanted = spelled(phrase).map(({ word }) => word);
    if (wanted.length === 0) continue;
    for (let at = 0; at + wanted.length <= words.length; at += 1) {
      if (wanted.every((word, step) => words[at + step].word === word)) known.fill(true, at, at + wanted.length);
    }
  }
  const refused = new Set(unknown.map((word) => word.toLowerCase()));
  /** @type {Piece[]} */
  const pieces = [];
  let end = 0;
  words.forEach(({ at, text, word }, number) => {
    if (at > end) push(pieces, prompt.slice(end, at), false);
    push(pieces, text, !known[number] || refused.has(word));
    end = at + text.length;
  });
  if (end < prompt.length) push(pieces, prompt.slice(end), false);
  return pieces;
}

/** @param {Piece[]} pieces @param {string} text @param {boolean} unknown */
function push(pieces, text, unknown) {
  const last = pieces.at(-1);
  if (last && last.unknown === unknown) last.text += text;
  else pieces.push({ text, unknown });
}

/** The marked words, each once. @param {Piece[]} pieces */
export function unknownWords(pieces) {
  const words = pieces.filter((piece) => piece.unknown).flatMap((piece) => piece.text.match(WORD) ?? []);
  return [...new Set(words.map((word) => word.toLowerCase()))];
}

/**
 * The look of a tile as rows: a single prompt is one row.
 * @param {{prompt?: string, prompts?: Weighted[]}} settings
 * @returns {Weighted[]}
 */
export function rowsOf(settings) {
  if (settings.prompts && settings.prompts.length > 0) return settings.prompts.map((one) => ({ ...one }));
  return [{ prompt: settings.prompt ?? "", weight: 1 }];
}

/**
 * The change of settings that rows mean: a mix names `prompts`, a single one `prompt`. Rows without words
 * count for nothing.
 * @param {Weighted[]} rows
 * @returns {{prompt: string} | {prompts: Weighted[]}}
 */
export function changeOf(rows) {
  const said = rows.map((row) => ({ prompt: row.prompt.trim(), weight: row.weight })).filter((row) => row.prompt && row.weight > 0);
  if (said.length === 0) return { prompt: "" };
  return said.length === 1 ? { prompt: said[0].prompt } : { prompts: said };
}

/** Shares of the rows in percent, as people read them. @param {Weighted[]} rows */
export function shares(rows) {
  const total = rows.reduce((sum, row) => sum + Math.max(0, row.weight), 0);
  return rows.map((row) => (total > 0 ? Math.round((100 * Math.max(0, row.weight)) / total) : 0));
}

/** A short name for a look. @param {{prompt?: string, prompts?: Weighted[]}} settings */
export function lookName(settings) {
  const rows = rowsOf(settings).filter((row) => row.prompt);
  return rows.map((row) => row.prompt).join(" + ") || "natural";
}

/**
 * The next style for a new tile: one that no tile has.
 * @param {{prompt: string}[]} styles
 * @param {string[]} taken prompts
 */
export function freshStyle(styles, taken) {
  const free = styles.find((style) => !taken.includes(style.prompt) && !/natural/.test(style.prompt));
  return (free ?? styles[taken.length % Math.max(1, styles.length)])?.prompt ?? "";
}
