export function useState<T>(first: T | (() => T)): [T, (next: T | ((before: T) => T)) => void];
export function useEffect(effect: () => unknown, inputs?: unknown[]): void;
export function useRef<T>(first: T): { current: T };
export function useId(): string;
