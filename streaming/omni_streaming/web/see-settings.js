// What a user has chosen: kept in this browser, told to the server, shown in the form.

const KEY = "omni.see";

/** Every setting: its values, the first is the default. Names are those of the form. */
const CHOICES = {
  spokenBy: ["omni", "reader"],
  verbosity: ["normal", "brief", "detailed"],
  speed: ["1", "0.75", "1.25", "1.5", "1.75", "2", "2.5"],
  directions: ["sides", "clock"],
  units: ["metric", "imperial", "steps"],
  listening: ["always", "hold", "press"],
  hazards: [true, false],
  earcons: [true, false],
  shortcuts: [true, false],
};

export class Settings {
  constructor() {
    const kept = read();
    for (const [name, values] of Object.entries(CHOICES)) {
      this[name] = values.includes(kept[name]) ? kept[name] : values[0];
    }
  }

  set(name, value) {
    if (!CHOICES[name]?.includes(value)) throw new RangeError(`${name} cannot be ${value}`);
    this[name] = value;
    const all = Object.fromEntries(Object.keys(CHOICES).map((key) => [key, this[key]]));
    try {
      localStorage.setItem(KEY, JSON.stringify(all));
    } catch {
      // A browser that keeps nothing (private window): good for this visit.
    }
  }

  get isReader() {
    return this.spokenBy === "reader";
  }

  /**
   * The `session` of an update.
   * @param {object} state
   * @param {boolean} state.hasSound whether this browser can play Omni’s voice
   * @param {boolean} state.hasCamera without one there is nothing to describe
   * @param {boolean} state.isQuiet
   */
  toSession({ hasSound, hasCamera, isQuiet }) {
    const { verbosity, units, directions, hazards } = this;
    const rate = Number(this.speed);
    const describe = { verbosity, units, directions, hazards, rate, quiet: isQuiet, language: "en" };
    return {
      type: "realtime",
      output_modalities: [this.isReader || !hasSound ? "text" : "audio"],
      audio: {
        input: {
          transcription: { model: "whisper-1" },
          turn_detection: this.listening === "always" ? { type: "server_vad" } : null,
        },
        output: { speed: Math.min(rate, 1.5) }, // the protocol allows no more
      },
      omni: { describe: hasCamera ? describe : null },
    };
  }

  /** Fill a form with elements of these names; every change is kept at once. */
  bind(form, onChange) {
    for (const name of Object.keys(CHOICES)) {
      const element = form.elements[name];
      if (element.type === "checkbox") element.checked = this[name];
      else element.value = this[name];
      element.addEventListener("change", () => {
        this.set(name, element.type === "checkbox" ? element.checked : element.value);
        onChange(name);
      });
    }
  }
}

function read() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
}
