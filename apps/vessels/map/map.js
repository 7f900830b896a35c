"use strict";
// Asks for /state once a second and draws the latest position of every vessel. Everything comes from this server.
const world = [[-58, -180], [77, 180]];
const map = L.map("map", {
  preferCanvas: true, minZoom: 0, maxZoom: 10, zoomSnap: 0.05, zoomDelta: 1, maxBounds: [[-85, -180], [85, 180]], maxBoundsViscosity: 1,
});
map.fitBounds(world);
map.attributionControl.setPrefix("Leaflet").addAttribution("Land: Natural Earth · vessels: simulated");
const dots = new Map();
const marks = L.layerGroup().addTo(map);
const plain = (name) => name.replaceAll("_", " ");
const text = (id, value) => { document.getElementById(id).textContent = value; };

async function get(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

// Outlines across the antimeridian jump from one edge of the map to the other: they are drawn whole, on both sides.
function wrapped(collection) {
  const polygons = [];
  for (const feature of collection.features) {
    for (const rings of feature.geometry.coordinates) {
      const whole = rings.map((ring) => {
        let turn = 0;
        return ring.map(([longitude, latitude], at) => {
          if (at > 0 && Math.abs(longitude - ring[at - 1][0]) > 180) turn += longitude < 0 ? 360 : -360;
          return [longitude + turn, latitude];
        });
      });
      polygons.push(whole);
      const over = whole[0].some(([longitude]) => Math.abs(longitude) > 180.001);
      const shift = whole[0].some(([longitude]) => longitude > 180.001) ? -360 : 360;
      if (over) polygons.push(whole.map((ring) => ring.map(([longitude, latitude]) => [longitude + shift, latitude])));
    }
  }
  return { type: "MultiPolygon", coordinates: polygons };
}

async function begin() {
  const land = await get("vendor/land-110m.json");
  L.geoJSON(wrapped(topojson.feature(land, land.objects.land)), {
    interactive: false, style: { color: "#8aa0a8", weight: 0.7, fillColor: "#f4f1e8", fillOpacity: 1 },
  }).addTo(map);
  const areas = await get("shapes");
  legend(areas.examples ? "protected area (example)" : "protected area");
  L.geoJSON(areas, {
    style: { color: "#2a7f62", weight: 1.5, fillOpacity: 0.12 },
    onEachFeature: (feature, layer) => layer.bindTooltip(document.createTextNode(feature.properties.name)),
  }).addTo(map);
  document.body.dataset.ready = "yes";
  for (;;) {
    let state;
    try { state = await get("state"); } catch { text("over", "the demo has ended"); return; }
    draw(state);
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

function legend(area) {
  const control = L.control({ position: "bottomleft" });
  control.onAdd = () => {
    const box = L.DomUtil.create("div", "legend");
    for (const [kind, what] of [["fishing", "fishing, 50 % or more"], ["other", "not fishing"], ["area", area], ["ring", "alert"]]) {
      const line = L.DomUtil.create("div", "", box);
      L.DomUtil.create("i", kind, line);
      line.append(what);
    }
    return box;
  };
  control.addTo(map);
}

// A reaction that is told at both ends says at which one.
const named = (alert) => plain(alert.reaction) + (alert.started === null ? "" : alert.started ? " begins" : " ends");

function draw(state) {
  let fishing = 0;
  for (const [vessel, latitude, longitude, probability] of state.vessels) {
    const busy = probability >= 0.5;
    fishing += busy;
    const style = { radius: busy ? 3.5 : 2, stroke: false, fillOpacity: 0.85, fillColor: busy ? "#d1431c" : "#2f6f8f" };
    let dot = dots.get(vessel);
    if (!dot) {
      dot = L.circleMarker([latitude, longitude], style).addTo(map);
      dot.bindTooltip(() => document.createTextNode(`${vessel}: ${Math.round(100 * dot.probability)} % fishing`));
      dots.set(vessel, dot);
    }
    dot.probability = probability;
    dot.setLatLng([latitude, longitude]).setStyle(style);
  }
  marks.clearLayers();
  const list = document.getElementById("alerts");
  list.replaceChildren();
  for (const alert of state.alerts) {
    const item = document.createElement("button");
    const name = document.createElement("b");
    item.className = alert.reaction + (alert.started === false ? " ended" : "");
    name.append(document.createElement("i"), named(alert));
    item.append(name, `${alert.vessel}, ${alert.time}`);
    list.append(document.createElement("li"));
    list.lastChild.append(item);
    if (alert.latitude === null) continue;
    const place = [alert.latitude, alert.longitude];
    item.onclick = () => map.flyTo(place, 6);
    if (alert.reaction !== "fishing") {
      L.circleMarker(place, { radius: 9, color: "#b00020", weight: 1.5, fillOpacity: 0 }).addTo(marks)
        .bindTooltip(document.createTextNode(`${named(alert)}: ${item.lastChild.textContent}`));
    }
  }
  text("clock", state.time);
  text("vessels", state.vessels.length);
  text("fishing", fishing);
  text("predictions", state.predictions.toLocaleString("en"));
  text("over", state.over);
  document.body.dataset.vessels = state.vessels.length;
}

let whole = true; // until somebody moves the map
map.on("mousedown touchstart zoomstart dragstart", () => { whole = false; });
map.on("resize", () => { if (whole) { map.fitBounds(world); whole = true; } });
begin();
