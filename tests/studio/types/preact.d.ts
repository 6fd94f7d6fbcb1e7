export type Element = unknown;
export function h(type: unknown, props: Record<string, unknown> | null, ...children: unknown[]): Element;
export function render(element: Element, parent: HTMLElement): void;
