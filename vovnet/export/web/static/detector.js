// The worker that runs the detector, as a class whose methods return promises.

export class Detector {
  #model;
  #report;
  #worker = null;
  #number = 0;

  /**
   * @param {object} model of model.json.
   * @param {(share: number) => void} report takes the share of the files that has come, 0 to 1.
   */
  constructor(model, report) {
    this.#model = model;
    this.#report = report;
  }

  /** Start the worker, again if it runs. */
  start() {
    this.#worker?.terminate();
    this.#worker = new Worker("worker.js", {type: "module"});
    const {file, bytes, input} = this.#model;
    return this.#ask({model: {file, bytes, input}}, [], ({ready, failed, loaded, total}, resolve, reject) => {
      if (ready) resolve();
      else if (failed) reject(new Error(failed));
      else this.#report(Math.min(1, loaded / total));
    });
  }

  /** Return what the detector finds in an ImageBitmap, which is given away. Call it again only when it has answered. */
  async detect(bitmap) {
    const id = ++this.#number;
    try {
      return await this.#ask({id, bitmap}, [bitmap], (data, resolve, reject) => {
        if (data.id !== id) return;
        if (data.error) reject(new Error(data.error));
        else resolve(data.found);
      });
    } catch (error) {
      // What failed may have left the runtime without memory: the next image gets a new one.
      await this.start();
      throw error;
    }
  }

  #ask(message, given, answer) {
    return new Promise((resolve, reject) => {
      this.#worker.onmessage = ({data}) => answer(data, resolve, reject);
      this.#worker.onerror = (event) => reject(new Error(event.message || "worker.js cannot be run"));
      this.#worker.postMessage(message, given);
    });
  }
}
