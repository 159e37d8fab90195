"use strict";
// Puts the page of parked/loadtest/plugin/connections_tab.py into the Connections tab of Locust's web UI.
//
// Locust draws a tab that it knows nothing about with nothing in it; the frame goes there while it is shown.

(() => {
  const frame = document.createElement("iframe");
  frame.src = "./connections/";
  frame.title = "Connections";
  frame.style.cssText = "display: block; width: 100%; height: 900px; border: 0;";

  // As high as what is in it: the page scrolls, not the frame.
  frame.addEventListener("load", () => {
    const body = frame.contentDocument.body;
    new frame.contentWindow.ResizeObserver(() => {
      frame.style.height = `${body.scrollHeight + 8}px`;
    }).observe(body);
  });

  function place() {
    const tab = document.querySelector("[role=tab][aria-selected=true]");
    if (tab?.textContent !== "Connections") frame.remove();
    else if (!frame.isConnected) tab.closest(".MuiContainer-root").append(frame);
  }

  new MutationObserver(place).observe(document.getElementById("root"), {childList: true, subtree: true});
})();
