// What TypeScript knows of the element: its tag, and its events.
import type { Board, Place, ScoreBoardElement, Status } from "./element.js";

export type TagName = "score-board";

export interface ScoreBoardEventMap extends Omit<HTMLElementEventMap, "error"> {
  board: CustomEvent<Board>;
  place: CustomEvent<Place>;
  status: CustomEvent<Readonly<Status>>;
  error: CustomEvent<{ code: string; detail?: string }>;
}

declare module "./element.js" {
  interface ScoreBoardElement {
    addEventListener<K extends keyof ScoreBoardEventMap>(
      type: K,
      listener: (this: ScoreBoardElement, event: ScoreBoardEventMap[K]) => void,
      options?: boolean | AddEventListenerOptions,
    ): void;
    addEventListener(
      type: string,
      listener: EventListenerOrEventListenerObject,
      options?: boolean | AddEventListenerOptions,
    ): void;
  }
}

declare global {
  interface HTMLElementTagNameMap {
    "score-board": ScoreBoardElement;
  }
}
