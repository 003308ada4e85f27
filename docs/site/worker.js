/* A Worker for pages opened from disk, where browsers start no script in one: the script runs in a hidden frame. The
   site's search is the only worker. Zensical would fetch such a stand-in from a CDN; this one comes with the site. */
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      this.inside = frame.contentWindow;
      const send = (data) => this.onmessage?.(new MessageEvent("message", { data }));
      this.inside.postMessage = (data) => setTimeout(send, 0, data);
      this.inside.importScripts = (...urls) => Promise.all(urls.map((each) => this.load(each)));
      this.load(url).then(() => {
        this.ready = true;
        this.waiting.splice(0).forEach((data) => this.deliver(data));
      });
    }
    load(url) {
      return new Promise((done, failed) => {
        const script = this.inside.document.createElement("script");
        Object.assign(script, { src: new URL(url, location.href).href, onload: done, onerror: failed });
        this.inside.document.body.appendChild(script);
      });
    }
    deliver(data) {
      this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data }));
    }
    postMessage(data) {
      this.ready ? this.deliver(data) : this.waiting.push(data);
    }
    terminate() {
      this.inside.frameElement.remove();
    }
  };
}
