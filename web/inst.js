// What the nodes of this pack show beyond ComfyUI's own widgets: "auto" for a number that is 0, the painting of a
// chosen style, what the box's widgets mean, and a node for a style file that is dropped on the canvas.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const LOADER = "InST_LoadStyle", LEARNER = "InST_LearnStyle", CHOICE = "style_name";
const FOLDER = "inst_styles", SUFFIX = ".safetensors", PICTURE = "modelspec.thumbnail";
const THUMBNAIL_HEIGHT = 128;  // px
const TEXT_ENCODERS = ["clip_l", "clip_g", "clip_h", "t5xxl"];

// ---- numbers whose 0 means "auto" ----

/** Writes a word for 0. Saved workflows and prompts go on holding the number. */
function writeWordForZero(widget, word) {
    const plain = findGetter(widget, "_displayValue");
    if (!plain) return;  // another front end: the number is shown, and its tooltip says what 0 means
    Object.defineProperty(widget, "_displayValue", {
        configurable: true,
        get() { return Number(this.value) === 0 && !this.computedDisabled ? word : plain.call(this); },
    });
    // Nodes 2.0 draws widgets of a type it does not know as they draw themselves.
    widget.type = "inst_auto_number";
    widget.draw = function (context, node, width, y, height, lowQuality) {
        this.drawWidget(context, { width, showText: !lowQuality });
    };
}

function findGetter(object, name) {
    for (let at = object; at; at = Object.getPrototypeOf(at)) {
        const found = Object.getOwnPropertyDescriptor(at, name)?.get;
        if (found) return found;
    }
    return null;
}

function writeWords(node) {
    const { required = {}, optional = {} } = node.constructor.nodeData?.input ?? {};
    for (const [name, spec] of Object.entries({ ...required, ...optional })) {
        const widget = spec[1]?.zero && node.widgets?.find((w) => w.name === name);
        if (widget) writeWordForZero(widget, spec[1].zero);
    }
}

// ---- the painting of a style ----

/** The picture in a style's file as an address, or null. */
async function pictureOf(name) {
    const answer = await api.fetchApi(`/view_metadata/${FOLDER}?filename=${encodeURIComponent(name)}`);
    const metadata = answer.ok ? await answer.json() : {};
    const picture = metadata[PICTURE] ?? "";
    return picture.startsWith("data:image/") ? picture : null;
}

function showPainting(node) {
    const choice = node.widgets?.find((w) => w.name === CHOICE);
    if (!choice || !node.addDOMWidget) return;
    const frame = document.createElement("div"), picture = document.createElement("img");
    frame.style.cssText = `height: ${THUMBNAIL_HEIGHT}px; display: flex; align-items: center; justify-content: center;`;
    picture.style.cssText = `max-width: 100%; max-height: ${THUMBNAIL_HEIGHT}px; object-fit: contain; border-radius: 4px;`;
    picture.alt = "the painting of this style";
    picture.className = "inst-painting";
    picture.onerror = () => { picture.hidden = true; };
    picture.onload = () => { picture.hidden = false; };
    picture.hidden = true;
    frame.append(picture);
    node.addDOMWidget("painting", "inst_painting", frame, {
        serialize: false,
        getMinHeight: () => THUMBNAIL_HEIGHT,
        getMaxHeight: () => THUMBNAIL_HEIGHT,
    }).serialize = false;

    let shown;
    const show = async () => {
        if (choice.value === shown || !String(choice.value).endsWith(SUFFIX)) return;
        const name = shown = choice.value;
        const address = await pictureOf(name);
        if (name !== shown) return;  // another one was chosen meanwhile
        picture.hidden = !address;
        if (address) picture.src = address;
    };
    const chosen = choice.callback;
    choice.callback = function (...given) {
        const result = chosen?.apply(this, given);
        show();
        return result;
    };
    const configured = node.onConfigure;
    node.onConfigure = function (...given) {
        const result = configured?.apply(this, given);
        show();
        return result;
    };
    requestAnimationFrame(show);
}

// ---- what the widgets of the box mean ----

/** Lets every widget of the box around Learn InST Style say what the widget behind it says when pointed at. */
function explain(box) {
    if (!box.subgraph.nodes.some((node) => node.comfyClass === LEARNER)) return;
    for (const widget of box.widgets ?? []) {
        const [id] = box.subgraph.inputs.find((input) => input.name === widget.name)?.linkIds ?? [];
        const link = box.subgraph.getLink?.(id), inner = link && box.subgraph.getNodeById(link.target_id);
        const { required = {}, optional = {} } = inner?.constructor.nodeData?.input ?? {};
        const spec = { ...required, ...optional }[inner?.inputs[link.target_slot]?.name];
        if (spec?.[1]?.tooltip) widget.tooltip ??= spec[1].tooltip;
    }
}

/** Not before: widgets of a box are made anew when it is placed or loaded. */
function explainWhenPointedAt(box) {
    const entered = box.onMouseEnter;
    box.onMouseEnter = function (...given) {
        explain(this);
        return entered?.apply(this, given);
    };
}

// ---- the text of learning, on the box that holds the node ----

/** The node behind an id such as 5:12, node 12 in the subgraph of node 5. */
function nodeOf(path) {
    let graph = app.rootGraph ?? app.graph, node;
    for (const id of path) {
        node = graph?.getNodeById(Number(id)) ?? graph?.getNodeById(id);
        graph = node?.subgraph;
    }
    return node;
}

const titles = new Map();  // boxes whose title tells what goes on inside -> their own title
let saved = null, message = null;

/** Lets the title of the box around Learn InST Style tell what the node says. */
function sayOutside({ detail }) {
    const path = String(detail.nodeId ?? "").split(":"), box = nodeOf(path.slice(0, 1));
    if (path.length < 2 || !box?.isSubgraphNode?.() || nodeOf(path)?.comfyClass !== LEARNER) return;
    if (!titles.has(box)) titles.set(box, box.title);
    [saved] = detail.text.split("\n");
    box.title = saved;
    app.graph.setDirtyCanvas(true, true);
}

/** Gives boxes their titles back, and says under which name a style was saved. */
function endSaying({ type }) {
    if (titles.size && type === "execution_success") {
        message = { severity: "success", summary: [...titles.values()][0], detail: saved, life: 15000 };
        app.extensionManager.toast.add(message);
    }
    for (const [box, title] of titles) box.title = title;
    titles.clear();
}

/** Makes room for what the next run has to say. */
function endMessage() {
    if (message) app.extensionManager.toast.remove(message);
    message = null;
}

// ---- style files dropped on the canvas ----

/** Whether a safetensors file holds a style: ours, or an embedding of one of the usual text encoders. */
async function holdsStyle(file) {
    try {
        const length = Number(new DataView(await file.slice(0, 8).arrayBuffer()).getBigUint64(0, true));
        const header = JSON.parse(await file.slice(8, 8 + length).text());
        return "inst.version" in (header.__metadata__ ?? {}) || TEXT_ENCODERS.some((key) => key in header);
    } catch {
        return false;
    }
}

/** Puts the file among the styles and returns its name there. */
async function keepStyle(file) {
    const answer = await api.fetchApi(`/inst/styles?name=${encodeURIComponent(file.name)}`,
                                      { method: "POST", body: file });
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.error);
    return said.name;
}

async function addLoader(file, place) {
    try {
        const name = await keepStyle(file);
        await app.refreshComboInNodes();
        const node = LiteGraph.createNode(LOADER);
        node.pos = place;
        app.graph.add(node);
        const choice = node.widgets.find((w) => w.name === CHOICE);
        choice.value = name;
        choice.callback?.(name);
        app.graph.setDirtyCanvas(true, true);
    } catch (error) {
        app.extensionManager.toast.add({ severity: "error", summary: file.name, detail: error.message, life: 10000 });
    }
}

async function openDropped(files, place) {
    for (const [i, file] of files.entries()) {
        if (await holdsStyle(file)) await addLoader(file, [place[0] + 30 * i, place[1] + 30 * i]);
        else await app.handleFile(file);  // a workflow in another model's file, as ComfyUI opens it
    }
}

function watchDrops() {
    document.addEventListener("drop", (event) => {
        const files = [...(event.dataTransfer?.files ?? [])];
        if (!files.length || !files.every((f) => f.name.toLowerCase().endsWith(SUFFIX))) return;
        event.preventDefault();
        event.stopImmediatePropagation();
        app.canvas.adjustMouseEvent(event);
        openDropped(files, [event.canvasX, event.canvasY]);
    }, { capture: true });
}

app.registerExtension({
    name: "InST",
    setup() {
        watchDrops();
        api.addEventListener("progress_text", sayOutside);
        api.addEventListener("promptQueueing", endMessage);
        for (const end of ["execution_success", "execution_error", "execution_interrupted"])
            api.addEventListener(end, endSaying);
    },
    nodeCreated(node) {
        writeWords(node);
        if (node.comfyClass === LOADER) showPainting(node);
        if (node.isSubgraphNode?.()) explainWhenPointedAt(node);
    },
});
