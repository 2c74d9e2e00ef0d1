// What Streamlit has no option for. It runs once for a browser's tab, whatever page is shown.
{
  // Streamlit adds a history entry for each choice that is written into the address: then Back has
  // to be pressed six times. Within a page the entry is replaced instead.
  const push = history.pushState.bind(history);
  history.pushState = (state, title, url) =>
    new URL(url ?? location.href, location.href).pathname === location.pathname
      ? history.replaceState(state, title, url)
      : push(state, title, url);

  // A number of no meaning by which the lesson knows, after a reload, too, whose answer is whose; the
  // browser forgets it when it is closed. (randomUUID is for https alone.)
  if (!/(^|; )mansu-student=/.test(document.cookie)) {
    const drawn = crypto.getRandomValues(new Uint32Array(4)).join("-");
    document.cookie = `mansu-student=${drawn}; path=/; SameSite=Strict`;
  }

  // What the address says is seen at once: the projector's type is large before Streamlit draws, and
  // another view or step of the lesson, and what is shown of an answer, begins at its top.
  let before, revealed = false;
  const follow = () => {
    const asked = new URLSearchParams(location.search);
    const large = location.pathname.endsWith("/learn") && asked.get("projector") === "on";
    document.documentElement.classList.toggle("projector", large);
    const of = [...asked].filter(([name]) => /^(view|step|my-.*)$/.test(name));
    const now = String(of.sort());
    if (now !== before) {
      document.querySelector("[data-testid=stMain]")?.scrollTo(0, 0);
      const fresh = ([name]) => name.startsWith("my-") && !before.includes(`${name},`);
      revealed = before !== undefined && of.some(fresh);
    }
    before = now;
  };
  for (const name of ["pushState", "replaceState"]) {
    const change = history[name].bind(history);
    history[name] = (...what) => {
      change(...what);
      follow();
    };
  }
  addEventListener("popstate", follow);
  follow();

  // On paper a chart would be cut off, for it is as wide as it was drawn for the screen, and a dark
  // theme would be printed dark, which nobody can read: page.css has what is printed instead.
  const charts = () => document.querySelectorAll(".js-plotly-plot .svg-container");
  const dark = () => getComputedStyle(document.querySelector(".stApp")).colorScheme === "dark";
  addEventListener("beforeprint", () => {
    charts().forEach((chart) => (chart.style.zoom = Math.min(1, 680 / chart.offsetWidth)));
    document.documentElement.classList.toggle("dark", dark());
  });
  addEventListener("afterprint", () => {
    charts().forEach((chart) => (chart.style.zoom = ""));
    document.documentElement.classList.remove("dark");
  });

  // For screen readers and keys, in Streamlit's own elements:
  const every = (what, mend) => document.querySelectorAll(`[data-testid=${what}]`).forEach(mend);
  const mend = () => {
    // The navigation puts its sections between a list and its items, which are none then.
    every("stSidebarNavItems", (list) => {
      list.setAttribute("role", "presentation");
      for (const item of list.querySelectorAll("li")) {
        const alone = item.parentElement === list;
        (alone ? item : item.parentElement).setAttribute("role", alone ? "presentation" : "list");
      }
    });
    // A place to drop a file has a name, and so must be something.
    every("stFileUploaderDropzone", (place) => place.setAttribute("role", "group"));
    // An answer that is shown takes the place of the button that asked for it, and its focus.
    const said = document.querySelector(".st-key-lesson-said");
    if (revealed && said) {
      revealed = false;
      said.tabIndex = -1;
      if (document.activeElement === document.body) said.focus({ preventScroll: true });
    }
    // A table that is wider than its place is scrolled by the arrow keys.
    every("stTable", ({ firstElementChild: box }) => {
      if (box && box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box?.removeAttribute("tabindex");
    });
  };
  // Not at each change: to ask for a table's width makes the browser lay out the whole page.
  let due = 0;
  const soon = () => {
    due ||= setTimeout(() => {
      due = 0;
      mend();
    }, 100);
  };
  new MutationObserver(soon).observe(document.body, { childList: true, subtree: true });
  addEventListener("resize", soon);
  mend();
}
