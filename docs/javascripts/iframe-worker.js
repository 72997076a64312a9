// Browsers start no workers from files on the disk, and the site's search is one. There it runs in a hidden frame.
// The plugin `offline` would load such a script from another server; it looks for this file's name.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.frame = frame.contentWindow
      // what the worker posts is a message of this object
      this.frame.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      const script = this.frame.document.createElement("script")
      script.src = url
      this.loaded = new Promise(resolve => script.addEventListener("load", resolve))
      this.frame.document.head.append(script)
    }

    postMessage(data) {
      this.loaded.then(() => this.frame.dispatchEvent(new this.frame.MessageEvent("message", { data })))
    }
  }
}
