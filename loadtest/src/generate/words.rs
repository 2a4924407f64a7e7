//! The word lists that generated logs are put together from. All written for this generator.

/// Parts of the shop.
pub const CATEGORIES: &[&str] = &[
    "teapots", "lamps", "garden", "bicycles", "boots", "kitchen", "books", "tents", "paints", "clocks", "chairs",
    "toys", "cameras", "blankets", "tools", "seeds",
];

/// First words of product names.
pub const ADJECTIVES: &[&str] = &[
    "amber", "brass", "calm", "copper", "crisp", "dark", "early", "fair", "gentle", "golden", "hollow", "indigo",
    "jolly", "little", "mellow", "northern", "oaken", "plain", "quiet", "rapid", "silver", "tall", "upland", "velvet",
    "winter",
];

/// Second words of product names.
pub const NOUNS: &[&str] = &[
    "anchor", "basket", "candle", "desk", "easel", "fern", "gate", "hammock", "inkwell", "jar", "kettle", "ladder",
    "mirror", "notebook", "oven", "pillow", "quilt", "rake", "saddle", "table", "umbrella", "vase", "wagon", "yarn",
];

/// Pages that every visit may touch.
pub const FIXED_PAGES: &[&str] =
    &["/", "/cart", "/checkout/address", "/checkout/payment", "/account", "/help/delivery", "/offers"];

/// What pages load.
pub const ASSETS: &[&str] = &[
    "/static/js/app.js",
    "/static/js/vendor.js",
    "/static/css/site.css",
    "/static/img/logo.svg",
    "/static/img/sprite.png",
    "/static/fonts/text.woff2",
    "/favicon.ico",
];

/// What pages report.
pub const BEACONS: &[&str] = &["view", "scroll", "hover", "add-to-cart", "leave"];

/// Where visits come from; empty is a visit without a referer.
pub const ENTRIES: &[&str] = &[
    "",
    "",
    "",
    "https://www.google.com/",
    "https://www.bing.com/",
    "https://duckduckgo.com/",
    "https://news.example.net/gifts",
    "https://blog.example.org/2026/ten-quiet-lamps",
];

/// The shop itself, as referers name it.
pub const SITE: &str = "https://shop.example.com";

/// Given names, for e-mail addresses.
pub const GIVEN: &[&str] = &[
    "anna", "ben", "clara", "david", "elif", "farid", "greta", "hugo", "ines", "jonas", "kaya", "lea", "marek", "nora",
    "omar", "paula", "quentin", "rosa", "sven", "tara", "uwe", "vera", "wanda", "yusuf", "zoe",
];

/// Family names, for e-mail addresses.
pub const FAMILY: &[&str] = &[
    "albers", "brandt", "costa", "duval", "eriksen", "fischer", "garcia", "hansen", "ivanov", "jansen", "kowalski",
    "lindgren", "moreau", "novak", "okafor", "petrov", "quinn", "rossi", "silva", "tanaka", "ueda", "vogel", "weber",
    "yilmaz",
];

/// Mail domains, all reserved for examples.
pub const MAIL_DOMAINS: &[&str] =
    &["example.com", "example.org", "example.net", "mail.example.com", "post.example.org"];

/// Browsers and apps as user agents, the common ones first. `#` stands for a version.
pub const AGENTS: &[&str] = &[
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/#.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/#E148",
    "ShopApp/4.# (Android 15; Pixel 9)",
    "Mozilla/5.0 (X11; Linux x86_64; rv:#.0) Gecko/20100101 Firefox/#.0",
    "ShopApp/4.# (iOS 18.1; iPhone16,2)",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/#.1 Safari/605.1.15",
    "Mozilla/5.0 (Linux; Android 14) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/#.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (Windows NT 10.0; rv:#.0) Gecko/20100101 Firefox/#.0",
    "Mozilla/5.0 (compatible; ExampleBot/2.#; +https://bot.example.net/about)",
    "feed-reader/1.#",
];
