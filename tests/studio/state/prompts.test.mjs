import assert from "node:assert/strict";
import { test } from "node:test";
import { changeOf, freshStyle, lookName, mark, rowsOf, shares, unknownWords } from "../../../services/rearview/studio/page/state/prompts.js";

const PHRASES = ["oil painting", "neon lights", "sketch", "ukiyo-e"];
const unknown = (prompt, said = []) => unknownWords(mark(prompt, PHRASES, said));

test("words that the model was never taught are marked", () => {
  assert.deepEqual(unknown("oil painting of a dragon"), ["dragon"]);
  assert.deepEqual(unknown("Neon Lights"), []);
});

test("a phrase counts where its words stand whole and in order", () => {
  assert.deepEqual(unknown("oil and painting"), ["oil", "painting"]);
  assert.deepEqual(unknown("sketches"), ["sketches"]);
  assert.deepEqual(unknown("oil,  painting"), []);
});

test("the pieces are the prompt", () => {
  const prompt = "  a dragon, an oil painting – Ünïcode's!\nend ";
  assert.equal(mark(prompt, PHRASES).map((piece) => piece.text).join(""), prompt);
});

test("what the service did not know is marked whatever the page thinks", () => {
  assert.deepEqual(unknown("sketch", ["Sketch"]), ["sketch"]);
});

test("a model that takes any prompt marks nothing by itself", () => {
  assert.deepEqual(unknownWords(mark("a dragon at dawn", [])), []);
  assert.deepEqual(mark("", []), []);
});

test("one prompt is `prompt`, several are `prompts`, none is an empty one", () => {
  assert.deepEqual(changeOf([{ prompt: " oil ", weight: 1 }]), { prompt: "oil" });
  assert.deepEqual(changeOf([{ prompt: "oil", weight: 1 }, { prompt: "", weight: 1 }]), { prompt: "oil" });
  assert.deepEqual(changeOf([{ prompt: "oil", weight: 1 }, { prompt: "neon", weight: 0.5 }]), {
    prompts: [{ prompt: "oil", weight: 1 }, { prompt: "neon", weight: 0.5 }],
  });
  assert.deepEqual(changeOf([]), { prompt: "" });
});

test("rows are read from either kind of prompt, and are copies", () => {
  assert.deepEqual(rowsOf({ prompt: "oil", prompts: [] }), [{ prompt: "oil", weight: 1 }]);
  const prompts = [{ prompt: "oil", weight: 2 }];
  rowsOf({ prompt: "", prompts })[0].weight = 9;
  assert.equal(prompts[0].weight, 2);
});

test("shares are percent of the sum", () => {
  assert.deepEqual(shares([{ prompt: "a", weight: 1 }, { prompt: "b", weight: 3 }]), [25, 75]);
  assert.deepEqual(shares([{ prompt: "a", weight: 0 }]), [0]);
});

test("a look is named by its prompts", () => {
  assert.equal(lookName({ prompt: "", prompts: [{ prompt: "oil", weight: 1 }, { prompt: "neon", weight: 1 }] }), "oil + neon");
  assert.equal(lookName({ prompt: "" }), "natural");
});

test("a new tile has a style that no other has", () => {
  const styles = [{ prompt: "natural video" }, { prompt: "oil painting" }, { prompt: "sketch" }];
  assert.equal(freshStyle(styles, ["oil painting"]), "sketch");
  assert.ok(freshStyle(styles, ["oil painting", "sketch"]));
  assert.equal(freshStyle([], []), "");
});
