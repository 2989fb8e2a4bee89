// Shows the saved video on OASIS Upscale Video when it is done. By itself the page goes on showing the last preview frame:
// it takes a node's previews before its outputs, and keeps them until the node runs again (ComfyUI_frontend 1.27 and 1.49).

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const NODE = "OasisUpscaleVideo"
const WIDGETS = ["$$canvas-image-preview", "$$comfy_animation_preview", "video-preview"]

function clear(node) {
  for (const id of Object.keys(app.nodePreviewImages ?? {}))
    if (id === String(node.id) || id.endsWith(`:${node.id}`)) delete app.nodePreviewImages[id]
  for (const widget of (node.widgets ?? []).filter((w) => WIDGETS.includes(w.name))) {
    widget.onRemove?.()
    node.widgets.splice(node.widgets.indexOf(widget), 1)
  }
  node.imgs = node.images = node.preview = node.animatedImages = node.videoContainer = node.previewMediaType = undefined
}

app.registerExtension({
  name: "oasis.video_result",
  setup() {
    api.addEventListener("executing", ({ detail }) => {
      const node = detail && app.graph.getNodeById(detail)
      if (node?.type === NODE) clear(node)
    })
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== NODE) return
    const onExecuted = nodeType.prototype.onExecuted
    nodeType.prototype.onExecuted = function (...output) {
      onExecuted?.apply(this, output)
      clear(this)
      this.setDirtyCanvas(true, true)
    }
  },
})
