export default class uPlot {
  constructor(options: unknown, columns: unknown, parent: HTMLElement);
  setData(columns: unknown): void;
  setSize(size: { width: number; height: number }): void;
  destroy(): void;
}
